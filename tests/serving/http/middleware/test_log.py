"""One line per request, and what is in it."""

import asyncio
import json
import logging

from tests.serving.http.client import GENERATE, app_client, ask
from tests.support.fakes import FakeBackend


def test_one_log_line_per_request(caplog):
    with caplog.at_level(logging.INFO, "ray_dit.serving.requests"):
        ask(
            json={"prompt": "1", "n": 2, "seed": 5},
            headers={"x-request-id": "abc", "authorization": "Bearer k3y"},
        )
        ask(json={"prompt": "unheard of"}, headers={"x-request-id": "bad\x01id"})
    first, second = (json.loads(record.message) for record in caplog.records)
    assert (first["request_id"], first["status"], first["n"], first["seed"], first["model"]) == (
        "abc",
        200,
        2,
        5,
        "fake",
    )
    assert first["seconds"] >= first["first_image_s"] >= 0
    assert "k3y" not in json.dumps(first)
    assert second["status"] == 400
    assert second["request_id"].startswith("req_")


def test_a_client_that_left_is_logged_as_gone(caplog):
    async def leave() -> None:
        backend = FakeBackend()
        backend.hold = True
        async with app_client(backend) as client:
            asking = asyncio.create_task(client.post(GENERATE, json={"prompt": "1"}))
            while not backend.open:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    with caplog.at_level(logging.INFO, "ray_dit.serving.requests"):
        asyncio.run(leave())
    (line,) = (json.loads(record.message) for record in caplog.records)
    assert line["status"] == 499
    assert line["n"] == 1
