"""Work for an engine with a fake model, and a client that collects the events of its ticket."""

import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.core.sampling import TableBank, init_rows, sample
from ray_dit.serving.engine.loop import Engine
from ray_dit.serving.engine.tickets import Done, Event, Failed, FinalImage, Work
from tests.support.fakes import FakeModel

QUICK = EngineConfig(profile_seconds=0)


class Client:
    """Collects the events of its ticket."""

    def __init__(self, engine: Engine, asked: Work) -> None:
        self.events: list[Event] = []
        self.ended_at = 0.0
        self._ended = threading.Event()
        self.started_at = time.monotonic()
        self.ticket = engine.submit(asked, self._on_event)

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self.ended_at = time.monotonic()
            self._ended.set()

    def wait(self) -> "Client":
        assert self._ended.wait(20), "the ticket never ended"
        return self

    @property
    def last(self) -> Event:
        return self.wait().events[-1]

    @property
    def seconds(self) -> float:
        return self.wait().ended_at - self.started_at

    def images(self) -> dict[int, np.ndarray]:
        self.wait()
        return {event.index: event.pixels for event in self.events if isinstance(event, FinalImage)}


def work(labels=(1,), steps=5, scale=3.0, name="ddim", seed=7, **fields) -> Work:
    sampler = SamplerConfig(name=name, num_inference_steps=steps, guidance_scale=scale)
    return Work(labels=tuple(labels), sampler=sampler, seed=seed, **fields)


def expected(model: FakeModel, asked: Work) -> np.ndarray:
    """The images by core.sampling alone."""
    rows = init_rows(
        model.latent_shape,
        labels=torch.tensor(asked.labels),
        sample_id=torch.arange(len(asked.labels)),
        seed=asked.seed,
        guidance_scale=asked.sampler.guidance_scale,
    )
    return model.decode(sample(model.guided_model, rows, TableBank([model.table(asked.sampler)])))


def held_engine(make_engine, model: FakeModel, **settings: int) -> tuple[Engine, Client]:
    """An engine whose first ticket has begun, and waits for the network until a test sets ``model.gate``."""
    model.gate.clear()
    engine = make_engine(model, EngineConfig(profile_seconds=0, **settings))
    first = Client(engine, work())
    until(lambda: engine.load().running == 1)
    return engine, first


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)
