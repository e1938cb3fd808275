"""HEAD is GET without its body, on every route."""

import asyncio
import http.client

import pytest

from ray_dit.serving.http.middleware.head import AnswerHead
from ray_dit.serving.http.pages import PAGE_FILES
from tests.serving.http.client import ask
from tests.support.fakes import FakeBackend
from tests.support.serving import serving

PATHS = ["/v1/models", "/v1/models/fake", "/v1/models/none", "/v1/labels?q=1", "/health", "/ready"]


@pytest.mark.parametrize("path", [*PATHS, "/openapi.json", "/nothing", *PAGE_FILES])
def test_head_has_the_status_and_headers_of_get(path):
    got, head = ask(method="GET", path=path), ask(method="HEAD", path=path)
    assert head.status_code == got.status_code
    assert head.content == b""
    ours = {"date", "x-request-id"}
    assert [h for h in head.headers.items() if h[0] not in ours] == [
        h for h in got.headers.items() if h[0] not in ours
    ]


def test_a_connection_goes_on_after_head():
    with serving({"fake": FakeBackend()}) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
        for method in ("HEAD", "GET", "HEAD", "GET"):
            connection.request(method, "/v1/models")
            answer = connection.getresponse()
            assert answer.status == 200
            assert bool(answer.read()) is (method == "GET")
        connection.close()


def test_the_body_is_kept_back_whatever_the_server_does_with_it():
    sent = []

    async def app(scope, receive, send):
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"body"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": []}
    asyncio.run(AnswerHead(app)(scope, None, send))
    assert sent[0]["headers"] == [(b"content-length", b"4")]
    assert sent[1]["body"] == b""
    assert scope["method"] == "HEAD"


def test_where_there_is_no_get_there_is_no_head():
    assert ask(method="HEAD", path="/v1/images/generations").status_code == 405
