"""The real training loop and the real serving engine on the device of a ``Bench``; nothing is judged here."""

import contextlib
import queue
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu_check.bench import Bench
from benchmarks.training import LatentsTask, OurLoop
from ray_dit.config.serve import EngineConfig
from ray_dit.pipeline import Pipeline
from ray_dit.runtime.training.parallel import Parallel
from ray_dit.serving.engine.loop import Engine
from ray_dit.serving.engine.tickets import Done, Event, Failed, FinalImage, Work


@contextlib.contextmanager
def training_loop(
    bench: Bench, task: LatentsTask, *, rows: int, parallel: Parallel | None = None, **settings: Any
) -> Iterator[OurLoop]:
    """The training loop, of so many samples per step."""
    with tempfile.TemporaryDirectory() as folder:
        loop = OurLoop(task, rows, Path(folder), bench.device, parallel, **settings)
        try:
            yield loop
        finally:
            loop.close()


def trained(bench: Bench, parallel: Parallel | None = None, **settings: Any) -> dict[str, Tensor]:
    """The weights after three steps."""
    task = LatentsTask(bench.sizes.parity)
    with training_loop(bench, task, rows=8, parallel=parallel, **settings) as step:
        for _ in range(3):
            step()
        assert step.model is not None, "it has made steps"
        return {name: value.detach().clone() for name, value in step.model.state_dict().items()}


def in_engine(pipeline: Pipeline, works: Sequence[Work]) -> list[NDArray[np.uint8]]:
    """The first image of each of these requests, made together by the server's engine."""
    model: Any = pipeline  # its cached properties are the protocol's
    engine = Engine(model, EngineConfig(slots=len(works), max_queued=len(works)))
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    images: dict[int, NDArray[np.uint8]] = {}
    try:
        for number, work in enumerate(works):
            engine.submit(work, lambda event, number=number: events.put((number, event)))
        left = len(works)
        while left:
            number, event = events.get()
            if isinstance(event, FinalImage):
                images[number] = event.pixels
            elif isinstance(event, Failed):
                raise RuntimeError(f"request {number} failed: {event.reason}")
            left -= isinstance(event, Done)
    finally:
        engine.close(timeout=60)
    return [images[number] for number in range(len(works))]
