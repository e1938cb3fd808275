"""Many clients at once over HTTP: equal images, bounded queues, freed slots."""

import asyncio
import base64
import gc
import io
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import ApiConfig, EngineConfig, LimitsConfig
from ray_dit.serving.service import ModelService
from tests.support.serving import serving

OPEN = ApiConfig(limits=LimitsConfig(requests_per_minute=10**6, max_concurrent=10**6))
GENERATE = "/v1/images/generations"


def pixels(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64)))).astype(int)


def memory(name: str) -> int:
    """kB of this process, as its status tells."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


def http_client(url: str, **options) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=100, limits=limits, **options)


def test_an_image_by_seed_is_the_same_in_any_mix_of_load(service, pipeline):
    rng = np.random.default_rng(1)
    bodies = [
        {
            "prompt": str(rng.integers(6)),
            "n": int(rng.integers(1, 4)),
            "seed": int(rng.integers(2**40)),
            "num_inference_steps": int(rng.integers(1, 30)),
            "guidance_scale": float(rng.choice([1.0, 1.5, 4.0, 7.25])),
            "sampler": str(rng.choice(["ddpm", "ddim", "dpmpp", "unipc"])),
        }
        for _ in range(40)
    ]

    async def all_at_once(url: str) -> list[httpx.Response]:
        async with http_client(url) as client:
            return await asyncio.gather(*(client.post(GENERATE, json=body) for body in bodies))

    with serving({"tiny": service}, OPEN) as url:
        answers = asyncio.run(all_at_once(url))
    worst = 0
    for body, answer in zip(bodies, answers, strict=True):
        sampler = pipeline.sampler(
            body["sampler"], steps=body["num_inference_steps"], guidance_scale=body["guidance_scale"]
        )
        assert isinstance(sampler, SamplerConfig)
        alone = pipeline([int(body["prompt"])] * body["n"], seed=body["seed"], sampler=sampler)
        got = [pixels(image["b64_json"]) for image in answer.json()["data"]]
        worst = max(
            worst, *(np.abs(one - np.asarray(image)).max() for one, image in zip(got, alone, strict=True))
        )
    assert worst <= 1


@pytest.mark.slow
def test_a_thousand_clients_get_an_image_or_a_429(pipeline):
    config = EngineConfig(profile_seconds=0, slots=64, max_queued=300)
    service = ModelService("tiny", pipeline, config)

    async def all_at_once(url: str) -> list[httpx.Response]:
        async with http_client(url) as client:
            body = {"prompt": "1", "num_inference_steps": 4}
            return await asyncio.gather(*(client.post(GENERATE, json=body) for _ in range(1000)))

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew, from what there is now
    before = memory("VmHWM")
    with serving({"tiny": service}, OPEN) as url:
        answers = asyncio.run(all_at_once(url))
    service.close()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 300
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
    assert memory("VmHWM") - before < 400_000  # kB, the thousand clients among them
    assert service.load().images == 0


def test_half_of_the_clients_leaving_frees_their_slots(pipeline):
    service = ModelService("tiny", pipeline, EngineConfig(profile_seconds=0))

    async def leave(url: str) -> tuple[int, int, list[int]]:
        body = {"prompt": "1", "num_inference_steps": 250, "sampler": "ddpm"}
        async with http_client(url) as client:
            tasks = [asyncio.create_task(client.post(GENERATE, json=body)) for _ in range(20)]
            while service.load().images < 20:
                await asyncio.sleep(0.005)
            for task in tasks[::2]:
                task.cancel()
            deadline = time.monotonic() + 2
            while service.load().images > 10 and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            left = service.load().images
            answers = await asyncio.gather(*tasks[1::2])
        return left, service.load().images, [answer.status_code for answer in answers]

    with serving({"tiny": service}, OPEN) as url:
        left, after, statuses = asyncio.run(leave(url))
    service.close()
    assert left == 10
    assert after == 0
    assert statuses == [200] * 10
