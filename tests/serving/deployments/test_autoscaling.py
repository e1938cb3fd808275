"""Replicas come with the images that wait and go when they are gone, on a real Ray Serve.

No request fails.
"""

import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from ray_dit.config.serve import ApiConfig, EngineConfig, LimitsConfig, ServeConfig
from tests.support.serving import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def config(model_uri: str, tmp_path: Any) -> Any:
    import ray
    from ray import serve as ray_serve

    from ray_dit.serving.deployments.launcher import start

    config = ServeConfig(
        model=(f"m={model_uri}",),
        port=free_port(),
        replicas=1,
        max_replicas=2,
        image_steps_per_replica=1600,
        upscale_seconds=1,
        downscale_seconds=2,
        engine=EngineConfig(profile_seconds=0),
        api=ApiConfig(limits=LimitsConfig(requests_per_minute=100_000, max_concurrent=1000)),
        drain_seconds=20,
    )
    before = {name: os.environ.get(name) for name in ("HOME", "RAY_AUTH_MODE")}
    os.environ |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    ray.init(address="local", num_cpus=6, include_dashboard=False, logging_level="ERROR")
    start(config)
    yield config
    ray_serve.shutdown()
    gc.collect()
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def replicas() -> int:
    from ray import serve as ray_serve

    states = ray_serve.status().applications["ray-dit"].deployments["model-m"].replica_states
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    latest = time.monotonic() + seconds
    while not what() and time.monotonic() < latest:
        time.sleep(0.5)
    return what()


def test_replicas_follow_the_images_that_wait(config: ServeConfig) -> None:
    url = f"http://127.0.0.1:{config.port}/v1/images/generations"
    body = {"prompt": "hen", "n": 4, "num_inference_steps": 200}
    calm = threading.Event()
    answers: list[int] = []

    def keep_asking() -> None:
        with httpx.Client(timeout=120) as client:
            while not calm.is_set():
                answers.append(client.post(url, json=body).status_code)

    assert replicas() == 1
    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking) for _ in range(8)]
        more = wait_for(lambda: replicas() == 2, 90)
        calm.set()
        for one in asking:
            one.result()
    assert more
    assert set(answers) == {200}
    assert wait_for(lambda: replicas() == 1, 90)
    assert httpx.post(url, json=body, timeout=60).status_code == 200
