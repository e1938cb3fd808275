"""What Ray Serve's proxy gets to see."""

import asyncio

import pytest

from ray_dit.serving.http.middleware.proxy import ProxyGuard


@pytest.mark.parametrize("given", [b"\xff\xfe", b"a" * 65, b"two words", b""])
def test_the_proxy_is_not_shown_request_ids_that_are_none(given):
    seen = []

    async def proxy(scope, receive, send):
        seen.append(dict(scope["headers"]))

    headers = [(b"x-request-id", given), (b"host", b"here")]
    asyncio.run(ProxyGuard(proxy)({"type": "http", "path": "/", "headers": headers}, None, None))
    headers[0] = (b"x-request-id", b"mine-1")
    asyncio.run(ProxyGuard(proxy)({"type": "http", "path": "/", "headers": headers}, None, None))
    assert seen == [{b"host": b"here"}, {b"host": b"here", b"x-request-id": b"mine-1"}]
