"""Bodies that are too long, too slow, of another type, or no JSON of ours."""

import socket

import pytest

from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.serving.http.client import GENERATE, ask
from tests.support.fakes import FakeBackend
from tests.support.serving import serving


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 60_000, 400),
        (b'{"prompt": "1", "n": 1e9}', 400),
        (b'{"prompt": "1", "n": 1' + b"0" * 6000 + b"}", 400),
        (b'{"prompt": "1", "n": true}', 400),
        (b'{"prompt": "1", "n": "2"}', 400),
        (b'{"prompt": "1", "guidance_scale": NaN}', 400),
        (b'{"prompt": "1", "guidance_scale": 1' + b"0" * 400 + b"}", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": ["1"]}', 400),
        (b'{"prompt": "1", "n": 10, "num_inference_steps": 251}', 400),
        (b"null", 400),
        (b"x" * 70_000, 413),
    ],
)
def test_bad_bodies(content, status):
    answer = ask(content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_without_length_is_cut_off_too():
    async def endless():
        while True:
            yield b" " * 10_000

    answer = ask(content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_other_content_types_are_refused():
    assert ask(content=b'{"prompt": "1"}', headers={"content-type": "text/plain"}).status_code == 415
    assert ask(content=b'{"prompt": "1"}').status_code == 415


def test_a_slow_body_is_given_up(tmp_path):
    config = ApiConfig(limits=LimitsConfig(body_seconds=0.3))
    with serving({"fake": FakeBackend()}, config) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            slow.sendall(
                f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                "Content-Length: 100\r\n\r\n{".encode()
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
