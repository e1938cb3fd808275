"""What must not get through: wrong keys, hosts, paths, bodies; limits, request ids, logs, clients that leave."""

import asyncio
import http.client
import json
import logging
import socket
import time
from dataclasses import replace

import httpx
import pytest
from conftest import serving
from fakes import FakeBackend

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import ApiConfig, LimitsConfig
from ray_dit.errors import UserError
from ray_dit.serving.api import create_app
from ray_dit.serving.guard import ProxyGuard
from ray_dit.serving.keys import VARIABLE, Keys, new_key
from ray_dit.serving.service import Refused

GENERATE = "/v1/images/generations"


def app_client(backend=None, config: ApiConfig | None = None, **options) -> httpx.AsyncClient:
    app = create_app({"fake": backend or FakeBackend()}, config or ApiConfig())
    options.setdefault("base_url", "http://localhost")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), **options)


def ask(backend=None, config=None, method="POST", path=GENERATE, **request) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with app_client(backend, config) as client:
            return await client.request(method, path, **request)

    return asyncio.run(asked())


@pytest.fixture
def keyed(tmp_path) -> tuple[ApiConfig, str]:
    key, line = new_key("anna")
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n{line}\n{new_key('bert')[1]}\n")
    return ApiConfig(keys_file=str(path)), key


# ---- keys


TRICKS = ("//health", "/health/", "/health/..", "/v1/../health", "/./health", "/%2fhealth", "/health%2f..%2fv1%2fmodels",
          "/HEALTH", "/health;x", "/health%00", "/health/../v1/models", "\\health", "/v1\\..\\health")  # fmt: skip


def test_no_route_but_health_answers_without_a_key(keyed):
    config, key = keyed
    routes = [route.path.replace("{model}", "fake") for route in create_app({}, config).routes]  # type: ignore[attr-defined]
    with serving({"fake": FakeBackend()}, config) as url:
        for path in [*routes, *TRICKS, "/nothing"]:
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"):
                status = raw(url, method, path)
                assert status in (400, 401) or path == "/health", (method, path, status)
        assert raw(url, "GET", "/health") == 200
        for path in TRICKS:  # nor do they lead anywhere with a key
            assert raw(url, "GET", path, {"Authorization": f"Bearer {key}"}) in (400, 404), path


def raw(url: str, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    """The status of a request whose path nobody has tidied up."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request(method, path, headers=headers or {})
    status = connection.getresponse().status
    connection.close()
    return status


def test_keys_open_by_bearer_and_by_password_only(keyed):
    config, key = keyed

    def status(**headers: str) -> int:
        return ask(config=config, json={"prompt": "1"}, headers=headers).status_code

    assert status(Authorization=f"Bearer {key}") == 200
    basic = httpx.BasicAuth("whoever", key)
    request = next(basic.auth_flow(httpx.Request("GET", "http://x")))
    assert status(Authorization=request.headers["authorization"]) == 200
    for wrong in (
        "",
        "Bearer",
        f"Bearer {key}x",
        f"Bearer {key[:-1]}",
        key,
        "Basic !!!",
        "Basic " + "A" * 9,
        "Bearer \xff",
    ):
        assert status(Authorization=wrong.encode("latin-1")) == 401  # type: ignore[arg-type]
    assert status(**{"X-Api-Key": key}) == 401
    assert status(Host=f"localhost@{key}") == 400


def test_hashes_are_no_keys_and_files_are_checked(tmp_path, monkeypatch):
    key, line = new_key("anna")
    monkeypatch.setenv(VARIABLE, f"{line},{new_key('bert')[1]}")
    keys = Keys.load(None)
    assert len(keys) == 2 and keys.owner(f"Bearer {key}") == "anna"
    assert keys.owner(f"Bearer {line.split(':')[1]}") is None
    monkeypatch.delenv(VARIABLE)
    for content in (key, f"{line}\n{line}", "anna:123", ""):
        (tmp_path / "keys").write_text(content)
        with pytest.raises(UserError) as caught:
            Keys.load(str(tmp_path / "keys"))
        assert key not in str(caught.value)
    with pytest.raises(UserError, match="can't be read"):
        Keys.load(str(tmp_path / "other"))


# ---- hosts, paths, bodies


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "127.0.0.1:80:80", "[::1", "a b", "localhost/"]
)
def test_forged_hosts(host):
    answer = ask(method="GET", path="/v1/models", headers={"host": host})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_hosts_of_this_machine(host):
    assert ask(method="GET", path="/health", headers={"host": host}).status_code == 200


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


# ---- limits


def test_rate_and_concurrency_by_key():
    async def flood() -> tuple[list[int], list[int]]:
        limits = LimitsConfig(requests_per_minute=60, max_concurrent=3)
        backend = FakeBackend()
        async with app_client(backend, ApiConfig(limits=limits)) as client:
            backend.hold = True
            held = [asyncio.create_task(client.post(GENERATE, json={"prompt": "1"})) for _ in range(5)]
            await asyncio.sleep(0.2)
            backend.hold = False
            at_once = [(await task).status_code for task in held]
            rate = [(await client.post(GENERATE, json={"prompt": "1"})) for _ in range(10)]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in rate if answer.status_code == 429)
        return at_once, [answer.status_code for answer in rate]

    at_once, rate = asyncio.run(flood())
    assert sorted(at_once) == [200, 200, 200, 429, 429]
    assert rate.count(200) == 7 and rate.count(429) == 3  # bursts of 10


@pytest.mark.parametrize(("reason", "status"), [("queue_full", 429), ("deadline", 504), ("closed", 503), ("internal", 500), ("lost", 503)])  # fmt: skip
def test_refusals_have_their_status(reason, status):
    assert ask(FakeBackend([Refused(reason, "so it is", 5)]), json={"prompt": "1"}).status_code == status


# ---- answers and logs


def test_a_defect_shows_no_traceback_and_is_logged_with_the_request_id(caplog):
    class Broken(FakeBackend):
        async def info(self):
            raise RuntimeError("secret at /home/someone")

    with caplog.at_level(logging.INFO, "ray_dit.serving"):
        answer = ask(Broken(), json={"prompt": "1"})
    assert answer.status_code == 500 and "secret" not in answer.text and "Traceback" not in answer.text
    lines = [json.loads(r.message) for r in caplog.records if r.name == "ray_dit.serving.requests"]
    assert lines[0]["request_id"] == answer.headers["x-request-id"] and lines[0]["status"] == 500


def test_one_log_line_a_request(caplog):
    with caplog.at_level(logging.INFO, "ray_dit.serving.requests"):
        ask(
            json={"prompt": "1", "n": 2, "seed": 5},
            headers={"x-request-id": "abc", "authorization": "Bearer k3y"},
        )
        ask(json={"prompt": "unheard of"}, headers={"x-request-id": "bad\x01id"})
    first, second = (json.loads(record.message) for record in caplog.records)
    assert (first["request_id"], first["status"], first["n"], first["seed"], first["model"]) == (
        "abc",
        200,
        2,
        5,
        "fake",
    )
    assert first["seconds"] >= first["first_image_s"] >= 0 and "k3y" not in json.dumps(first)
    assert second["status"] == 400 and second["request_id"].startswith("req_")


@pytest.mark.parametrize(
    ("own", "steps", "status"), [(None, 7, 200), (None, 8, 400), (7, None, 200), (8, None, 400)]
)
def test_images_times_steps_are_bounded_also_by_the_models_own_steps(own, steps, status):
    class Slow(FakeBackend):
        async def info(self):
            listed = None if own is None else tuple(float(t) for t in range(own, 0, -1))
            return replace(await super().info(), sampler=SamplerConfig(timesteps=listed))

    config = ApiConfig(limits=LimitsConfig(max_total_steps=21))
    body = {"prompt": "1", "n": 3} | ({} if steps is None else {"num_inference_steps": steps})
    answer = ask(Slow(), config, json=body)
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["message"] == "n x steps is 24; at most 21 a request"


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


def test_security_headers_are_everywhere():
    for path in ("/", "/health", "/nothing"):
        headers = ask(method="GET", path=path).headers
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "default-src 'none'" in headers["content-security-policy"]
        )
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_order(stream):
    backend = FakeBackend()
    backend.hold = True
    with serving({"fake": backend}) as url:
        body = {"prompt": "1", "stream": stream}
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.3) as client:
            client.post(url + GENERATE, json=body)
        deadline = time.monotonic() + 2
        while backend.open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert backend.orders == 1 and backend.open == 0


def test_a_stream_that_waits_says_that_it_lives(monkeypatch):
    monkeypatch.setattr("ray_dit.serving.api.KEEP_ALIVE_SECONDS", 0.05)
    backend = FakeBackend()
    backend.hold = True
    with serving({"fake": backend}) as url, httpx.Client() as client:
        with client.stream("POST", url + GENERATE, json={"prompt": "1", "stream": True}) as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": still here"
            backend.hold = False
            assert "data: [DONE]" in list(lines)


def test_ready_and_missing_models():
    class Loading(FakeBackend):
        async def ready(self):
            raise ConnectionError("not there")

    assert ask(method="GET", path="/ready").status_code == 200
    assert ask(Loading(), method="GET", path="/ready").status_code == 503
    assert ask(method="GET", path="/v1/models/other").status_code == 404
    assert ask(method="GET", path="/v1/labels?q=7").json()["data"] == [
        {"id": 7, "name": "7", "wordnet_id": None}
    ]


def test_a_backend_that_stands_still_is_given_up(monkeypatch):
    monkeypatch.setattr("ray_dit.serving.api.GRACE_SECONDS", 0.0)
    backend = FakeBackend()
    backend.hold = True
    config = ApiConfig(limits=LimitsConfig(request_seconds=0.2))
    assert ask(backend, config, json={"prompt": "1"}).status_code == 504
    assert backend.open == 0
