"""Rate and concurrency by key, through the API."""

import asyncio
import math
import re

import httpx
import pytest

from ray_dit.config.serve import ApiConfig, LimitsConfig
from ray_dit.serving.http.errors import ApiError, retry_headers
from ray_dit.serving.http.limiter import Limiter
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


def test_answers_tell_what_is_left():
    async def asked() -> list[httpx.Response]:
        config = ApiConfig(
            limits=LimitsConfig(requests_per_minute=1)
        )  # a bucket of ten, as good as never filled
        async with app_client(config=config) as client:
            bodies = [{"prompt": "1"}, {"prompt": "1", "stream": True}, {"prompt": "no such"}]
            answers = [await client.post(GENERATE, json=body) for body in bodies]
            return answers + [await client.post(GENERATE, json=bodies[0]) for _ in range(9)]

    answers = asyncio.run(asked())
    left = [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers]
    assert left == ["9", "8", None, "7", "6", "5", "4", "3", "2", "1", "0", "0"]
    assert [answer.status_code for answer in answers] == [200, 200, 400] + [200] * 8 + [429]
    for answer in answers[:2] + answers[3:]:
        assert answer.headers["x-ratelimit-limit-requests"] == "10"
        assert re.fullmatch(r"[0-9]+\.[0-9]{3}s", answer.headers["x-ratelimit-reset-requests"])
    assert 590 < float(answers[-1].headers["x-ratelimit-reset-requests"].rstrip("s")) <= 600


def test_a_bucket_fills_with_time():
    now = 0.0
    limiter = Limiter(LimitsConfig(requests_per_minute=120), clock=lambda: now)
    for _ in range(12):
        with limiter.enter("anna", "r"):
            pass
    with pytest.raises(ApiError), limiter.enter("anna", "r"):
        pass
    assert limiter.headers("anna")["x-ratelimit-reset-requests"] == "6.000s"
    assert limiter.headers("bert")["x-ratelimit-remaining-requests"] == "12"
    now = 2.0
    assert limiter.headers("anna")["x-ratelimit-remaining-requests"] == "4"
    now = 100.0
    assert limiter.headers("anna")["x-ratelimit-remaining-requests"] == "12"


def test_a_crowd_that_is_refused_at_once_comes_back_over_a_window():
    async def crowd() -> list[httpx.Response]:
        async with app_client(config=ApiConfig(limits=LimitsConfig(requests_per_minute=1))) as client:
            return [await client.post(GENERATE, json={"prompt": "1"}) for _ in range(210)]

    refused = [answer for answer in asyncio.run(crowd()) if answer.status_code == 429]
    assert len(refused) == 200
    waits = [int(answer.headers["retry-after-ms"]) / 1000 for answer in refused]
    assert all(59 < wait <= 120 for wait in waits)
    tenths = [sum(60 + 6 * i <= wait < 66 + 6 * i for wait in waits) for i in range(10)]
    assert min(tenths) > 3  # of 20 on average
    assert [int(answer.headers["retry-after"]) for answer in refused] == [math.ceil(wait) for wait in waits]


@pytest.mark.parametrize(("seconds", "low", "high"), [(0.1, 1, 3), (1, 1, 3), (10, 10, 20), (500, 120, 120)])
def test_the_window_of_a_retry(seconds, low, high):
    waits = [int(retry_headers(seconds, f"req_{i}")["retry-after-ms"]) / 1000 for i in range(500)]
    assert min(waits) >= low
    assert max(waits) <= high
    assert max(waits) - min(waits) >= 0.9 * (high - low)
    assert retry_headers(seconds, "req_1") == retry_headers(seconds, "req_1")
