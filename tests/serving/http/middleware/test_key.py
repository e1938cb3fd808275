"""No way past the key but /health."""

import httpx

from ray_dit.serving.http.app import create_app
from tests.serving.http.client import ask, raw
from tests.support.fakes import FakeBackend
from tests.support.serving import serving

TRICKS = (
    "//health",
    "/health/",
    "/health/..",
    "/v1/../health",
    "/./health",
    "/%2fhealth",
    "/health%2f..%2fv1%2fmodels",
    # fmt: skip
    "/HEALTH",
    "/health;x",
    "/health%00",
    "/health/../v1/models",
    "\\health",
    "/v1\\..\\health",
)


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


def test_ready_is_open_where_it_is_set(keyed):
    config, _ = keyed
    assert ask(config=config, method="GET", path="/ready").status_code == 401
    open_ready = config.model_copy(update={"ready_without_key": True})
    assert ask(config=open_ready, method="GET", path="/ready").status_code == 200
    assert ask(config=open_ready, method="GET", path="/ready/").status_code == 401
    assert ask(config=open_ready, method="GET", path="/v1/models").status_code == 401


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
