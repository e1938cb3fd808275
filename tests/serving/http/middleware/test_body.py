"""Bodies that are too long, too slow, of another type, or no JSON of ours."""

import gzip
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
        (b'{"prompt": "1", "n": "two"}', 400),
        (b'{"prompt": "1", "n": 1.5}', 400),
        (b'{"prompt": "1", "n": Infinity}', 400),
        (b'{"prompt": "1", "n": -1}', 400),
        (b'{"prompt": "1", "seed": -2}', 400),
        (b'{"prompt": "1", "seed": 9223372036854775808}', 400),
        (b'{"prompt": "1", "seed": 1e300}', 400),
        (b'{"prompt": "1", "guidance_scale": NaN}', 400),
        (b'{"prompt": "1", "guidance_scale": 1' + b"0" * 400 + b"}", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": ["1"]}', 400),
        (b'{"prompt": "1", "n": 10, "num_inference_steps": 251}', 400),
        (b"null", 400),
        (b"x" * 70_000, 413),
    ],
)
@pytest.mark.parametrize("mode", ["openai", "strict"])
def test_bad_bodies(content, status, mode):
    config = ApiConfig(compatibility=mode)
    answer = ask(config=config, content=content, headers={"content-type": "application/json"})
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


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "identity, gzip"])
def test_compressed_bodies_are_refused(encoding):
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = ask(content=gzip.compress(b'{"prompt": "1"}'), headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_encoding"
    assert ask(json={"prompt": "1"}, headers={"content-encoding": "identity"}).status_code == 200


def test_a_slow_body_is_given_up(tmp_path):
    config = ApiConfig(limits=LimitsConfig(body_seconds=0.3))
    with serving({"fake": FakeBackend()}, config) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            slow.sendall(
                f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                "Content-Length: 100\r\n\r\n{".encode()
            )
            answer = slow.recv(4000)
            assert answer.startswith(b"HTTP/1.1 408")


UPGRADE = (
    f"POST {GENERATE} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 15\r\n"
    "Host: localhost\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
    "User-Agent: Java-http-client/17.0.15\r\nContent-Type: application/json\r\n\r\n"
    '{"prompt": "1"}'
)
"""What Java's HttpClient sends unless it is told to speak HTTP/1.1."""


def test_a_body_that_an_upgrade_lost_is_told():
    with serving({"fake": FakeBackend()}) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as java:
            java.sendall(UPGRADE.encode())
            answer = b""
            while more := java.recv(4000):  # until it is closed: what follows the headers is no request
                answer += more
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"let the client speak HTTP/1.1" in answer
    assert answer.count(b"HTTP/1.1 400") == 1


def test_an_upgrade_whose_body_came_through_is_answered():
    assert ask(json={"prompt": "1"}, headers={"upgrade": "h2c"}).status_code == 200
