"""A model without weights, as fast as it is told to be, and a backend without a model."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
import torch
from torch import Tensor

from ray_dit.config import DiffusionConfig, SamplerConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.samplers import SamplerTable, make_table
from ray_dit.formats.labels import Labels
from ray_dit.serving.backend import Accepted, Complete, Ended, ImageSpec, Message, ModelInfo, Partial, Refused
from ray_dit.serving.service import encode

NUM_CLASSES = 10


class FakeModel:
    """A step of r rows takes a + b·r seconds; ``calls`` lists the labels of each call.

    ``broken`` makes calls fail.
    """

    latent_shape = (4, 2, 2)
    device = torch.device("cpu")

    def __init__(self, *, a: float = 0.0, b: float = 0.0, decode_seconds: float = 0.0) -> None:
        self.a, self.b, self.decode_seconds = a, b, decode_seconds
        self.calls: list[list[int]] = []
        self.broken: Exception | None = None
        self.gate = threading.Event()  # cleared, calls wait: a test decides what is there when they go on
        self.gate.set()
        self.decode_gate = threading.Event()
        self.decode_gate.set()
        self.guided_model = GuidedModel(self._network, NUM_CLASSES)

    def _network(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.gate.wait(10)
        if self.broken is not None:
            raise self.broken
        self.calls.append(y.tolist())
        if self.a or self.b:
            time.sleep(self.a + self.b * len(x))
        eps = 0.9 * x + 0.01 * y[:, None, None, None] + 1e-4 * t[:, None, None, None]
        return torch.cat((eps, torch.zeros_like(eps)), dim=1)

    def table(self, sampler: SamplerConfig) -> SamplerTable:
        return make_table(sampler, linear_schedule(DiffusionConfig()), learn_sigma=True)

    def decode(self, latents: Tensor) -> np.ndarray:
        self.decode_gate.wait(10)
        if self.decode_seconds:
            time.sleep(self.decode_seconds)
        values = (latents[:, :3] * 20 + 128).clamp(0, 255).to(torch.uint8)
        return np.ascontiguousarray(values.permute(0, 2, 3, 1).numpy())


class FakeBackend:
    """A backend that refuses as told, then makes black images at once, or waits while ``hold`` is set."""

    def __init__(self, refusals: list[Refused] | None = None) -> None:
        self.refusals = refusals or []
        self.late: Refused | None = None
        self.specs = 0
        self.open = 0
        self.hold = False

    async def info(self) -> ModelInfo:
        labels = Labels(tuple(str(number) for number in range(NUM_CLASSES)))
        return ModelInfo(
            name="fake", labels=labels, image_size=8, sampler=SamplerConfig(), guidable=True, created=1
        )

    async def ready(self) -> bool:
        return True

    async def generate(self, spec: ImageSpec) -> AsyncIterator[Message]:
        self.specs += 1
        self.open += 1
        try:
            if self.refusals:
                yield self.refusals.pop()
                return
            yield Accepted(SamplerConfig(num_inference_steps=spec.num_inference_steps or 25))
            while self.hold:
                await asyncio.sleep(0.01)
            if self.late is not None:
                yield self.late
                return
            image = encode(np.zeros((8, 8, 3), np.uint8), spec.output_format)
            for index in range(len(spec.labels)):
                for step in range(spec.previews):
                    yield Partial(index, step, image)
                yield Complete(index, image)
            yield Ended(0.1, 0.0)
        finally:
            self.open -= 1
