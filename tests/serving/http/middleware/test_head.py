"""HEAD is GET without its body, on every route."""

import http.client

import pytest

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


def test_where_there_is_no_get_there_is_no_head():
    assert ask(method="HEAD", path="/v1/images/generations").status_code == 405
