"""Nothing but HTTP gets in."""

import asyncio

from ray_dit.config.serve import ApiConfig
from ray_dit.serving.http.app import create_app
from tests.support.fakes import FakeBackend


def test_websockets_are_closed_whatever_they_ask_for():
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    app = create_app({"fake": FakeBackend()}, ApiConfig())
    asyncio.run(app({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
