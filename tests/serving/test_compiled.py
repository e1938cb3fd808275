"""A compiled model behind the engine: compiled before it serves, and never while someone waits."""

from pathlib import Path

import numpy as np
import pytest

import ray_dit
from ray_dit.config.serve import EngineConfig
from ray_dit.serving.engine.profile import call_sizes
from ray_dit.serving.engine.tickets import Work
from ray_dit.serving.service import ModelService
from tests.serving.engine.clients import Client
from tests.support.graphs import compiled_graphs
from tests.support.tiny import write_model

pytestmark = pytest.mark.slow

MOST_ROWS, MOST_DECODED = 6, 5


def test_a_compiled_model_is_compiled_before_the_first_request(tmp_path: Path) -> None:
    write_model(tmp_path / "model", ("cat", "dog"))
    plain = ray_dit.load(str(tmp_path / "model"), "cpu")
    before = compiled_graphs()
    # much less time than compiling takes: the profile may stop early, what is compiled may not
    settings = EngineConfig(max_step_rows=MOST_ROWS, decode_batch=MOST_DECODED, profile_seconds=0.01)
    service = ModelService("tiny", ray_dit.load(str(tmp_path / "model"), "cpu", compile=True), settings)
    at_start = compiled_graphs()
    assert len(call_sizes(MOST_ROWS)) == 4
    assert at_start - before == 4 + 3  # and decoding 1, 2 and 4 at once

    works = [
        Work(
            labels=(0, 1)[:images],
            sampler=plain.sampler("ddim", steps=steps, guidance_scale=scale),
            seed=steps,
        )
        for images in (1, 2)
        for steps in (1, 3)
        for scale in (1.0, 4.0)
    ]
    for together in (works[:1], works):
        clients = [Client(service.engine, work) for work in together]
        for work, client in zip(together, clients, strict=True):
            got = client.images()
            want = plain(list(work.labels), seed=work.seed, sampler=work.sampler)
            for index, image in enumerate(want):
                assert np.abs(got[index].astype(int) - np.asarray(image).astype(int)).max() <= 1
    service.close()
    assert compiled_graphs() == at_start, "someone waited for the compiler"
