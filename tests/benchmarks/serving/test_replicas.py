"""The baseline answers whole requests, and steps are held against their profile."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.serving.models import random_model
from benchmarks.serving.replicas import BatchReplica, StepTimes, batch_size
from ray_dit.serving.engine.policy import StepCurve


def test_a_batch_answers_each_request_with_its_images_at_the_steps_it_asks_for(tmp_path: Path) -> None:
    uri = random_model(tmp_path / "model", "small")
    replica = BatchReplica(uri=uri, a=None, b=None, threads=1, precision="float32")
    answers = replica.run([{"n": 1, "num_inference_steps": 2}, {"n": 2, "num_inference_steps": 3}])
    assert [len(answer["data"]) for answer in answers] == [1, 2]
    assert replica.counted.rows == 2 * (1 * 2 + 2 * 3)  # guided
    for answer in answers:
        for image in answer["data"]:
            assert Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).size == (16, 16)


@pytest.mark.parametrize(("max_rows", "requests"), [(128, 16), (9, 1), (2, 1)])
def test_a_batch_is_as_many_requests_as_fill_a_call(max_rows: int, requests: int) -> None:
    assert batch_size(max_rows) == requests


def test_steps_count_once_there_is_a_profile() -> None:
    times = StepTimes()
    times.stepped(2, 5.0)
    times.curve = StepCurve([2, 4], [0.1, 0.2])
    times.stepped(2, 0.15)
    times.stepped(4, 0.3)
    assert (times.took, times.foreseen) == (pytest.approx(0.45), pytest.approx(0.3))
