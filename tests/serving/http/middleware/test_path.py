"""Paths that could be read in two ways lead nowhere."""

from tests.serving.http.client import raw
from tests.support.fakes import FakeBackend
from tests.support.serving import serving


def test_path_tricks_are_not_found():
    paths = [
        "//v1/models",
        "/v1//models",
        "/v1%2fmodels",
        "/v1/models/..",
        "/../etc/passwd",
        "/page.js/../../x",
    ]
    with serving({"fake": FakeBackend()}) as url:
        for path in [
            *paths,
            "/%2e%2e/x",
            "/v1/models/%00",
            "/v1/models/fake%2f..",
            "http://evil.example/v1/models/x",
        ]:
            assert raw(url, "GET", path) in (400, 404), path
