"""Random requests through an engine that pads its calls, against the pipeline called for each of them alone.

`RAY_DIT_PADDED_REQUESTS=1000` asks for so many.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ray_dit.config.serve import EngineConfig
from ray_dit.core.samplers import SAMPLERS
from ray_dit.pipeline import Pipeline
from ray_dit.serving.engine.loop import Engine
from ray_dit.serving.engine.profile import call_sizes
from ray_dit.serving.engine.tickets import Observer, Work
from tests.serving.engine.clients import Client

REQUESTS = int(os.environ.get("RAY_DIT_PADDED_REQUESTS", "200"))
MOST_ROWS = 24


class Steps(Observer):
    """The rows of each call, before it is padded."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def stepped(self, rows: int, seconds: float) -> None:
        self.rows.append(rows)


def random_work(pipeline: Pipeline, rng: np.random.Generator) -> Work:
    sampler = pipeline.sampler(
        str(rng.choice(list(SAMPLERS))),
        steps=int(rng.integers(1, 13)),
        guidance_scale=float(rng.choice([0.0, 1.0, 1.5, 4.0, 20.0])),
    )
    classes = len(pipeline.labels)
    labels = tuple(int(label) for label in rng.integers(0, classes, rng.integers(1, 5)))
    return Work(labels=labels, sampler=sampler, seed=int(rng.integers(0, 2**53)))


@contextmanager
def called_sizes(pipeline: Pipeline) -> Iterator[set[int]]:
    """The rows that the network is called with meanwhile."""
    sizes: set[int] = set()
    hook = pipeline.model.register_forward_pre_hook(lambda _, arguments: sizes.add(len(arguments[0])))
    yield sizes
    hook.remove()


def test_padded_calls_make_the_images_of_the_pipeline(pipeline):
    rng = np.random.default_rng(0)
    asked = [random_work(pipeline, rng) for _ in range(REQUESTS)]
    steps = Steps()
    settings = EngineConfig(
        profile_seconds=0, max_step_rows=MOST_ROWS, slots=32, max_queued=REQUESTS, pad_calls=True
    )
    with called_sizes(pipeline) as sizes:
        engine = Engine(pipeline, settings, steps)  # type: ignore[arg-type]
        images = [client.images() for client in [Client(engine, one) for one in asked]]
        engine.close()
    assert sizes <= set(call_sizes(MOST_ROWS))
    assert set(steps.rows) - sizes  # some were padded
    worst = 0
    for one, got in zip(asked, images, strict=True):
        want = pipeline(list(one.labels), seed=one.seed, sampler=one.sampler)
        assert sorted(got) == list(range(len(want)))
        for index, image in enumerate(want):
            difference = np.abs(got[index].astype(int) - np.asarray(image).astype(int)).max()
            worst = max(worst, int(difference))
    print(f"{len(asked)} requests: at most {worst} levels apart")
    assert worst <= 1
