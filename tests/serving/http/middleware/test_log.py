"""One line per request, and what is in it."""

import asyncio
import json
import logging

import httpx

from ray_dit.config.serve import ApiConfig
from ray_dit.serving.http.app import create_app
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


def test_the_line_has_the_address_of_the_client(caplog):
    config = ApiConfig(trusted_proxies=("127.0.0.1",))  # of the transport, as of a proxy on this machine
    with caplog.at_level(logging.INFO, "ray_dit.serving.requests"):
        for settings in (config, ApiConfig()):
            ask(config=settings, method="GET", path="/health", headers={"x-forwarded-for": "203.0.113.9"})
    lines = [json.loads(record.message) for record in caplog.records]
    assert [line["client"] for line in lines] == ["203.0.113.9", "127.0.0.1"]


def test_what_is_refused_before_its_route_counts_there_all_the_same():
    seen: list[tuple[str, int]] = []
    app = create_app(
        {"fake": FakeBackend()},
        ApiConfig(),
        observe=lambda path, status, seconds: seen.append((path, status)),
    )

    async def requests() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.post(GENERATE, json={"prompt": "1"})
            await client.post(GENERATE, content=b"x" * 100_000, headers={"content-type": "application/json"})
            await client.post(GENERATE, content=b"x")
            await client.get(GENERATE)
            await client.get("/v1/models/fake", headers={"host": "evil.example"})
            await client.get("/made/up")

    asyncio.run(requests())
    assert seen == [
        (GENERATE, 200),
        (GENERATE, 413),
        (GENERATE, 415),
        (GENERATE, 405),
        ("/v1/models/{model}", 400),
        ("none", 404),
    ]
