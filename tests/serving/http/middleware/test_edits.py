"""What other servers do with images that are sent."""

import socket
import time

import pytest

from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.serving.http.client import STRICT, ask
from tests.support.fakes import FakeBackend
from tests.support.serving import serving


@pytest.mark.parametrize("config", [None, STRICT])
@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_edits_are_not_found_and_the_answer_says_what_is(path, config):
    image = {"image": ("a.png", b"\x89PNG" * 50_000, "image/png")}
    answer = ask(config=config, path=path, files=image, data={"prompt": "a hat"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert "POST /v1/images/generations" in answer.json()["error"]["message"]
    assert ask(config=config, path=path, json={"prompt": "1"}).status_code == 404


def test_without_a_key_not_even_that_is_told(keyed):
    config, _ = keyed
    assert ask(config=config, path="/v1/images/edits", json={}).status_code == 401


def test_a_client_that_sends_a_large_image_sees_the_answer():
    with serving({"fake": FakeBackend()}) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            length = 16 * 2**20
            head = f"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            client.sendall(head.encode())
            time.sleep(0.3)  # long enough for an answer that did not wait
            client.sendall(b"x" * length)  # fails where the connection is closed already
            assert client.recv(100).startswith(b"HTTP/1.1 404")


def test_one_that_never_ends_is_given_up():
    with serving({"fake": FakeBackend()}, ApiConfig(limits=LimitsConfig(body_seconds=0.2))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            slow.sendall(
                b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nab"
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 404")
