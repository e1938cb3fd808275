"""Asking an application over fake backends: in this process, or over a socket, its path left as it is."""

import asyncio
import http.client

import httpx

from ray_dit.config.serve import ApiConfig
from ray_dit.serving.http.app import create_app
from tests.support.fakes import FakeBackend

GENERATE = "/v1/images/generations"
STRICT = ApiConfig(compatibility="strict")


def app_client(backend=None, config: ApiConfig | None = None, **options) -> httpx.AsyncClient:
    app = create_app({"fake": backend or FakeBackend()}, config or ApiConfig())
    options.setdefault("base_url", "http://localhost")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), **options)


def ask(backend=None, config=None, method="POST", path=GENERATE, **request) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with app_client(backend, config) as client:
            return await client.request(method, path, **request)

    return asyncio.run(asked())


def raw(url: str, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    """The status of a request whose path nobody has tidied up."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request(method, path, headers=headers or {})
    status = connection.getresponse().status
    connection.close()
    return status
