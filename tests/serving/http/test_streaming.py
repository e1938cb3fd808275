"""Clients that leave or wait, and backends that stand still."""

import time

import httpx
import pytest

from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.serving.http.client import GENERATE, ask
from tests.support.fakes import FakeBackend
from tests.support.serving import serving


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_work(stream):
    backend = FakeBackend()
    backend.hold = True
    with serving({"fake": backend}) as url:
        body = {"prompt": "1", "stream": stream}
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.3) as client:
            client.post(url + GENERATE, json=body)
        deadline = time.monotonic() + 2
        while backend.open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert backend.specs == 1
        assert backend.open == 0


def test_a_stream_that_waits_says_that_it_lives(monkeypatch):
    monkeypatch.setattr("ray_dit.serving.http.streaming.KEEP_ALIVE_SECONDS", 0.05)
    backend = FakeBackend()
    backend.hold = True
    asked = {"prompt": "1", "stream": True}
    with (
        serving({"fake": backend}) as url,
        httpx.Client() as client,
        client.stream("POST", url + GENERATE, json=asked) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == ": still here"
        backend.hold = False
        assert "data: [DONE]" in list(lines)


def test_a_backend_that_stands_still_is_given_up(monkeypatch):
    monkeypatch.setattr("ray_dit.serving.http.routes.GRACE_SECONDS", 0.0)
    backend = FakeBackend()
    backend.hold = True
    config = ApiConfig(limits=LimitsConfig(request_seconds=0.2))
    assert ask(backend, config, json={"prompt": "1"}).status_code == 504
    assert backend.open == 0
