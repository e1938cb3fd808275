"""One model as a backend in this process: a spec in, messages out; image files instead of pixels.

Knows no HTTP. Here a request's spec becomes the engine's work: its sampler is settled against the model, and
the engine's events, which come from its threads, become messages in asyncio.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.core.settle import is_guidable
from ray_dit.errors import UserError
from ray_dit.pipeline import Pipeline
from ray_dit.serving.backend import (
    REFUSALS,
    Accepted,
    Complete,
    Ended,
    ImageSpec,
    Message,
    ModelInfo,
    OutputFormat,
    Partial,
    Refused,
)
from ray_dit.serving.engine.loop import Engine
from ray_dit.serving.engine.model import Model
from ray_dit.serving.engine.policy import Load
from ray_dit.serving.engine.profile import call_sizes, time_call, warm_up
from ray_dit.serving.engine.tickets import (
    Closed,
    Done,
    Event,
    Failed,
    FinalImage,
    Observer,
    Preview,
    QueueFull,
    Work,
)
from ray_dit.vae import PIECES


class ModelService:
    """A pipeline behind an engine."""

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        config: EngineConfig | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self.pipeline = pipeline
        pipeline.vae  # noqa: B018 - loaded now, not with the first request
        model = cast(Any, pipeline)  # pyright does not take a cached_property for a property
        config = config or EngineConfig()
        if pipeline.compile:
            config = _for_compiled(model, config)
        if pipeline.compile_vae:
            config = _for_compiled_vae(pipeline, config)
        self.engine = Engine(model, config, observer)
        self._created = int(time.time())

    async def info(self) -> ModelInfo:
        """See Backend."""
        config = self.pipeline.config
        return ModelInfo(
            name=self.name,
            labels=self.pipeline.labels,
            image_size=config.latents.image_size,
            sampler=config.sampler,
            guidable=is_guidable(config),
            created=self._created,
        )

    async def ready(self) -> bool:
        """See Backend."""
        return self.engine.healthy

    def load(self) -> Load:
        """How busy the engine is."""
        return self.engine.load()

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """See Engine.close."""
        self.engine.close(drain=drain, timeout=timeout)

    async def generate(self, spec: ImageSpec) -> AsyncIterator[Message]:
        """See Backend."""
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            self._check_labels(spec)
            # A new sampler's checks and table may take a while: not in the event loop.
            sampler = await asyncio.to_thread(self._sampler, spec)
            await asyncio.to_thread(self.engine.prepare, sampler)
            ticket = self.engine.submit(
                Work(
                    labels=spec.labels,
                    sampler=sampler,
                    seed=spec.seed,
                    previews=spec.previews,
                    seconds=spec.seconds,
                ),
                lambda event: _hand_over(loop, inbox, event),
            )
        except (UserError, QueueFull, Closed) as error:
            yield self._refusal(error)
            return
        try:
            yield Accepted(sampler)
            async for message in self._messages(spec, inbox):
                yield message
        finally:
            ticket.cancel()

    async def _messages(self, spec: ImageSpec, inbox: "asyncio.Queue[Event]") -> AsyncIterator[Message]:
        while True:
            event = await inbox.get()
            if isinstance(event, Preview):
                if inbox.qsize() > 2 * len(spec.labels):
                    continue  # the reader is slow: what it would see is out of date
                yield Partial(event.index, event.step, await _encoded(event.pixels, spec))
            elif isinstance(event, FinalImage):
                yield Complete(event.index, await _encoded(event.pixels, spec))
            elif isinstance(event, Done):
                yield Ended(event.seconds, event.queued_seconds)
                return
            else:
                assert isinstance(event, Failed)
                yield Refused(event.reason, REFUSALS[event.reason])
                return

    def _check_labels(self, spec: ImageSpec) -> None:
        """The API checked them by what it knows of the model: in an update perhaps the one before."""
        most = max(len(self.pipeline.labels), 1) - 1
        if not all(0 <= label <= most for label in spec.labels):
            raise UserError(f"model {self.name!r} has the classes 0 to {most}; ask again")

    def _sampler(self, spec: ImageSpec) -> SamplerConfig:
        return self.pipeline.sampler(
            spec.sampler, steps=spec.num_inference_steps, guidance_scale=spec.guidance_scale
        )

    def _refusal(self, error: Exception) -> Refused:
        if isinstance(error, QueueFull):
            return Refused("queue_full", "too many requests are waiting; try again later", error.retry_after)
        if isinstance(error, Closed):
            return Refused("closed", REFUSALS["closed"], 1.0)
        # Errors name the model by its place, which is no affair of the client's.
        return Refused("invalid", str(error).replace(self.pipeline.folder.store.uri, f"model {self.name!r}"))


def _for_compiled(model: Model, config: EngineConfig) -> EngineConfig:
    """Settings under which a compiled network meets no size of call for which it was not compiled here."""
    most = warm_up(lambda rows: time_call(model, rows), call_sizes(config.max_step_rows), "calls of %d rows")
    return config.model_copy(update={"pad_calls": True, "max_step_rows": max(most, 2)})


def _for_compiled_vae(pipeline: Pipeline, config: EngineConfig) -> EngineConfig:
    """Settings under which a compiled decoder meets no number of images it was not compiled for here."""

    def decode(images: int) -> None:
        pipeline.decode(torch.zeros(images, *pipeline.latent_shape))

    sizes = [size for size in reversed(PIECES) if size <= config.decode_batch]
    most = warm_up(decode, sizes, "decoding %d at once")
    return config if most == sizes[-1] else config.model_copy(update={"decode_batch": most})


def _hand_over(loop: asyncio.AbstractEventLoop, inbox: "asyncio.Queue[Event]", event: Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(inbox.put_nowait, event)


async def _encoded(pixels: np.ndarray, spec: ImageSpec) -> bytes:
    return await asyncio.to_thread(encode, pixels, spec.output_format, spec.output_compression)


def encode(pixels: np.ndarray, output_format: OutputFormat, compression: int = 100) -> bytes:
    """Pixels uint8 [height, width, 3] as a file; ``compression`` 0-100 is the quality of jpeg and webp."""
    file = io.BytesIO()
    options = {"compress_level": 3} if output_format == "png" else {"quality": max(compression, 1)}
    Image.fromarray(pixels).save(file, format=output_format, **options)
    return file.getvalue()
