"""What Ray Serve's proxy gets to see, and what clients see of what it says by itself."""

import asyncio

import httpx
import pytest

from ray_dit.serving.http.middleware.proxy import ProxyGuard


@pytest.mark.parametrize("given", [b"\xff\xfe", b"a" * 65, b"two words", b""])
def test_the_proxy_is_not_shown_request_ids_that_are_none(given):
    seen = []

    async def proxy(scope, receive, send):
        seen.append(dict(scope["headers"]))

    headers = [(b"x-request-id", given), (b"host", b"here")]

    async def send(message):
        pass

    asyncio.run(ProxyGuard(proxy)({"type": "http", "path": "/", "headers": headers}, None, send))
    headers[0] = (b"x-request-id", b"mine-1")
    asyncio.run(ProxyGuard(proxy)({"type": "http", "path": "/", "headers": headers}, None, send))
    assert seen == [{b"host": b"here"}, {b"host": b"here", b"x-request-id": b"mine-1"}]


def answered(proxy, path: str = "/v1/models") -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyGuard(proxy), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(asked())


def proxy_that_says(status: int, body: bytes, *headers: tuple[bytes, bytes]):
    async def proxy(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return proxy


TEXT = (b"content-type", b"text/plain; charset=utf-8")
NOT_FOUND = b"Path '/v1/models' not found. Ping http://.../-/routes for available routes."


@pytest.mark.parametrize(
    ("said", "body", "status", "code"),
    [
        (404, NOT_FOUND, 503, "not_ready"),
        (503, b"Request dropped due to backpressure (num_queued_requests=7)", 503, "not_ready"),
        (503, b"Deployment is unavailable", 503, "not_ready"),
        (429, b"too many", 429, "queue_full"),
        (408, b"Request abc timed out after 1s.", 408, "timeout"),
    ],
)
def test_what_the_proxy_says_by_itself_is_the_apis(said, body, status, code):
    answer = answered(proxy_that_says(said, body, TEXT))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["error"]["code"] == code
    assert "routes" not in answer.text
    assert ("retry-after" in answer.headers) is (status != 408)


def test_a_request_that_its_application_left_without_answer_is_a_503():
    async def died(scope, receive, send):
        pass

    async def broken(scope, receive, send):
        raise RuntimeError("a replica died")

    for proxy in (died, broken):
        answer = answered(proxy)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert 2 <= int(answer.headers["retry-after"]) <= 4


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (404, b"no such page", [TEXT, (b"content-length", b"12")]),
        (404, b"no such page", [TEXT]),
        (503, b"later", [TEXT, (b"content-length", b"5")]),
        (503, b"{}", [(b"content-type", b"application/json")]),
        (200, b"Ping http://.../-/routes", [TEXT]),
        (500, b"", []),
    ],
)
def test_what_applications_say_passes_as_it_is(status, body, headers):
    answer = answered(proxy_that_says(status, body, *headers))
    assert (answer.status_code, answer.content) == (status, body)
    assert "retry-after" not in answer.headers


def test_health_is_for_load_balancers_in_the_proxys_own_words():
    answer = answered(proxy_that_says(503, b"draining", TEXT), "/-/healthz")
    assert (answer.status_code, answer.text) == (503, "draining")
    assert answered(proxy_that_says(200, b"{}", TEXT), "/-/routes").status_code == 404


def test_a_stream_that_breaks_off_gets_no_second_answer():
    sent = []

    async def breaks(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data", "more_body": True})
        raise RuntimeError("a replica died")

    async def send(message):
        sent.append(message["type"])

    with pytest.raises(RuntimeError):
        asyncio.run(ProxyGuard(breaks)({"type": "http", "path": "/", "headers": []}, None, send))
    assert sent == ["http.response.start", "http.response.body"]
