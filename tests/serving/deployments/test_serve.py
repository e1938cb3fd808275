"""The endpoint on a real Ray Serve: HTTP through its proxy, several models, a replica killed, drains."""

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from ray_dit.config.serve import ApiConfig, EngineConfig, LimitsConfig, ServeConfig
from tests.support.serving import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 1000  # as many as a request may have: not done on a fast processor before the test has acted
LONG = {
    "prompt": "hen",
    "n": 10,
    "num_inference_steps": STEPS,
    "sampler": "ddpm",
    "stream": True,
    "partial_images": 10,
}


@pytest.fixture(scope="module")
def config(model_uri) -> ServeConfig:
    return ServeConfig(
        model=(f"first={model_uri}", f"second={model_uri}"),
        port=free_port(),
        replicas=1,
        num_cpus=6,
        engine=EngineConfig(profile_seconds=0),
        api=ApiConfig(
            limits=LimitsConfig(
                requests_per_minute=100_000,
                max_concurrent=1000,
                max_inference_steps=STEPS,
                max_total_steps=10 * STEPS,
            )
        ),
        drain_seconds=20,
    )


@pytest.fixture(scope="module")
def url(config, tmp_path_factory):
    import ray
    from ray import serve as ray_serve

    from ray_dit.serving.deployments.launcher import start

    before = {name: os.environ.get(name) for name in ("HOME", "RAY_AUTH_MODE")}
    os.environ |= {"HOME": str(tmp_path_factory.mktemp("home")), "RAY_AUTH_MODE": "disabled"}
    ray.init(address="local", num_cpus=6, include_dashboard=False, logging_level="ERROR")
    start(config)
    yield f"http://127.0.0.1:{config.port}"
    ray_serve.shutdown()
    gc.collect()  # handles left in cycles would take down actors of a later session with the same number
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_images_of_both_models_are_those_of_the_pipeline(client, pipeline):
    from tests.support.serving import pixels

    assert [model.id for model in client.models.list()] == ["first", "second"]
    want = pipeline(["hen"], seed=4)[0]
    for model in ("first", "second"):
        answer = client.images.generate(prompt="hen", model=model, extra_body={"seed": 4})
        difference = pixels(answer.data[0].b64_json).astype(int) - want
        assert abs(difference).max() <= 1


def test_a_stream_through_the_proxy(client):
    extra = {"num_inference_steps": 200}
    events = list(client.images.generate(prompt="hen", stream=True, partial_images=3, extra_body=extra))
    assert events[-1].type == "image_generation.completed"
    assert len(events) >= 2


def test_answers_of_all_kinds(url):
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/ready").json() == {"status": "ok"}
    assert httpx.get(f"{url}/v1/labels", params={"q": "cra"}).json()["total"] == 2
    assert "<title>" in httpx.get(url).text
    for path in ("//v1/models", "/v1/..%2fhealth", "/nothing"):
        assert httpx.get(url + path).status_code in (400, 404)
    answer = httpx.post(
        f"{url}/v1/images/generations", json={"prompt": "x"}, headers={"x-request-id": "mine-1"}
    )
    assert answer.status_code == 400
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    big = httpx.post(
        f"{url}/v1/images/generations", content=b"[" * 100_000, headers={"content-type": "application/json"}
    )
    assert big.status_code == 413
    assert httpx.get(f"{url}/health", headers={"host": "evil.example"}).status_code == 400


def test_a_client_that_leaves_frees_its_slots(url):
    with httpx.stream("POST", f"{url}/v1/images/generations", json=LONG, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)  # it is being made
        assert _images("first") > 0
    deadline = time.monotonic() + 5
    while _images("first") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _images("first") == 0


def test_metrics_reach_prometheus(url, client):
    import ray

    client.images.generate(prompt="hen")
    metrics = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    wanted = {
        "dit_requests_total",
        "dit_step_rows",
        "dit_step_seconds",
        "dit_busy_seconds_total",
    }
    wanted |= {"dit_first_image_seconds", "dit_engine_request_seconds", "dit_images"}
    wanted |= {
        "dit_request_seconds",
        "dit_cancelled_total",
        "dit_queued_requests",
    }  # by the test above
    wanted |= {"dit_decode_seconds_total"}
    deadline = time.monotonic() + 40  # Ray collects them every few seconds
    missing = wanted
    while missing and time.monotonic() < deadline:
        time.sleep(1)
        said = httpx.get(metrics).text
        missing = {name for name in wanted if f"\n# TYPE ray_{name} " not in said}
    assert missing == set()
    assert "ray_ray_dit" not in said


def test_a_killed_replica_costs_no_request(url):
    import ray

    results: list[int] = []
    body = {"prompt": "hen", "model": "second", "n": 2, "num_inference_steps": STEPS, "seed": 1}

    def ask() -> None:
        results.append(httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while not _images("second") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _images("second") > 0
    ray.kill(_replica("model-second"), no_restart=True)
    assert not results  # none was done: all six have to be made again
    for thread in threads:
        thread.join(60)
    assert len(results) == 6  # none hangs
    assert results.count(200) == 6, results


def test_a_rolling_update_drops_no_request(url, config):
    from ray import serve as ray_serve

    from ray_dit.serving.deployments.application import build
    from ray_dit.serving.deployments.launcher import APP_NAME

    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        body = {"prompt": "hen", "num_inference_steps": 30}
        while not stop.is_set():
            statuses.append(httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    changed = config.model_copy(update={"engine": EngineConfig(profile_seconds=0, decode_batch=4)})
    ray_serve.run(build(changed), name=APP_NAME, route_prefix="/")
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert len(statuses) > 4
    assert set(statuses) == {200}


def _replica(deployment: str):
    import ray
    from ray.util.state import list_actors  # noqa: F401 - only for its error message when Ray has no state API

    name = next(
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"#{deployment}#" in actor["name"]
    )
    return ray.get_actor(name, namespace="serve")


def _images(model: str) -> int:
    from ray import serve as ray_serve

    handle = ray_serve.get_deployment_handle(f"model-{model}", app_name="ray-dit")
    return int(handle.record_autoscaling_stats.remote().result(timeout_s=10)["image_steps"])


def test_while_the_api_is_replaced_answers_are_its_own(url):
    import ray

    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(_answers_until, f"{url}/v1/models", stop.is_set)
        ray.kill(_replica("api"))
        time.sleep(5)
        stop.set()
    statuses = [answer.status_code for answer in asking.result()]
    assert set(statuses) <= {200, 503}
    assert statuses[-1] == 200


def test_the_command_serves_and_lets_requests_finish(model_uri, tmp_path):
    port, metrics_port = free_port(), free_port()
    code = (
        "from ray_dit.serving.deployments.launcher import serve; "
        "from ray_dit.config.serve import ApiConfig, EngineConfig, LimitsConfig, ServeConfig; "
        f"serve(ServeConfig(model=({model_uri!r},), port={port}, metrics_port={metrics_port}, "
        f"api=ApiConfig(limits=LimitsConfig(max_inference_steps={STEPS}, max_total_steps={10 * STEPS})), "
        "engine=EngineConfig(profile_seconds=0)))"
    )
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        assert server.stdout.readline() == f"serving tiny at http://127.0.0.1:{port}\n"
        assert server.stdout.readline().startswith("page: ")
        said_at = server.stdout.readline().removeprefix("metrics: ").strip()
        assert said_at.endswith(f":{metrics_port}/metrics")
        assert httpx.get(said_at).status_code == 200
        # what Ray Serve's proxy answers by itself, before any key is looked at: health alone
        assert httpx.get(f"http://127.0.0.1:{port}/-/routes").status_code == 404
        assert httpx.get(f"http://127.0.0.1:{port}/-/healthz").status_code == 200
        strange = httpx.get(f"http://127.0.0.1:{port}/health", headers=[(b"X-Request-Id", b"\xff\xfe")])
        assert strange.status_code == 200
        assert len(strange.headers.get_list("x-request-id")) == 1
        url = f"http://127.0.0.1:{port}/v1/images/generations"
        with (
            ThreadPoolExecutor() as pool,
            httpx.stream("POST", url, json=LONG, timeout=60) as running,
        ):
            lines = running.iter_lines()
            next(lines)  # it is being made
            rest = pool.submit(list, lines)
            server.terminate()
            late = _answers_until(f"http://127.0.0.1:{port}/v1/models", rest.done)
            assert running.status_code == 200
            assert sum('"image_generation.completed"' in line for line in rest.result()) == 10
        said = server.communicate(timeout=60)[1]
    assert 503 in {answer.status_code for answer in late}
    lines = [json.loads(part) for part in said.splitlines() if '"request_id"' in part]  # nothing before them
    lines = [line for line in lines if line["path"] != "/v1/models"]
    assert [line["status"] for line in lines] == [200, 200]
    assert lines[1]["n"] == 10
    assert lines[0]["request_id"] == strange.headers["x-request-id"]
    assert "Traceback" not in said


def _answers_until(url: str, done) -> list[httpx.Response]:
    """Answers to GET, one after another; each is the API's: 200, or 503 in JSON with Retry-After."""
    answers = []
    while not done():
        try:
            answers.append(httpx.get(url, timeout=30))
        except httpx.TransportError:
            break  # the proxy itself has stopped
        if answers[-1].status_code != 200:
            assert answers[-1].status_code == 503
            assert answers[-1].json()["error"]["code"]
            assert int(answers[-1].headers["retry-after"]) >= 1
        time.sleep(0.05)
    return answers


def test_a_port_in_use_and_a_missing_model_are_told(model_uri, tmp_path):
    from ray_dit.errors import NotFound, UserError
    from ray_dit.serving.deployments.launcher import serve

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="can't be used"):
        serve(ServeConfig(model=(model_uri,), port=taken.getsockname()[1]))
    with pytest.raises(NotFound, match="no model"):
        serve(ServeConfig(model=(str(tmp_path),)))


def test_a_cluster_that_does_not_answer_is_told(model_uri):
    """In a process of its own: this one has joined a Ray, which it would use."""
    command = [sys.executable, "-m", "ray_dit.cli", "serve", "--model", model_uri, "--address", "127.0.0.1:1"]
    ended = subprocess.run([*command, "--port", str(free_port())], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "nothing answers at the Ray address '127.0.0.1:1'" in ended.stderr
    assert "Traceback" not in ended.stderr
