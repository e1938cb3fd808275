"""Rate and concurrency by key, through the API."""

import asyncio

from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.serving.http.client import GENERATE, app_client
from tests.support.fakes import FakeBackend


def test_rate_and_concurrency_by_key():
    async def flood() -> tuple[list[int], list[int]]:
        limits = LimitsConfig(requests_per_minute=60, max_concurrent=3)
        backend = FakeBackend()
        async with app_client(backend, ApiConfig(limits=limits)) as client:
            backend.hold = True
            held = [asyncio.create_task(client.post(GENERATE, json={"prompt": "1"})) for _ in range(5)]
            await asyncio.sleep(0.2)
            backend.hold = False
            at_once = [(await task).status_code for task in held]
            rate = [(await client.post(GENERATE, json={"prompt": "1"})) for _ in range(10)]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in rate if answer.status_code == 429)
        return at_once, [answer.status_code for answer in rate]

    at_once, rate = asyncio.run(flood())
    assert sorted(at_once) == [200, 200, 200, 429, 429]
    assert rate.count(200) == 7
    assert rate.count(429) == 3
