"""What a body may ask of a model."""

from dataclasses import replace

import pytest

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.serving.http.client import ask
from tests.support.fakes import FakeBackend


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
    assert status == 200 or answer.json()["error"]["message"] == "n x steps is 24; at most 21 per request"
