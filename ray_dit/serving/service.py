"""One model as a service for asyncio: an order in, messages out; image files instead of pixels. Knows no HTTP.

`ModelService` is the engine of this process. Whoever calls it through Ray sees the same messages, so all of them are
plain data that can travel.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
from PIL import Image

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.core.settle import is_guidable
from ray_dit.errors import UserError
from ray_dit.pipeline import Pipeline
from ray_dit.serving.engine import (
    Closed,
    Done,
    Engine,
    Event,
    Failed,
    Job,
    Load,
    Observer,
    Picture,
    Preview,
    QueueFull,
)
from ray_dit.storage.labels import Labels

OutputFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request for images, its labels known to be right; None keeps the model's own setting."""

    labels: tuple[int, ...]
    seed: int
    sampler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    previews: int = 0
    seconds: float | None = None
    output_format: OutputFormat = "png"
    output_compression: int = 100


@dataclass(frozen=True)
class Accepted:
    """The first message of an order that was taken; its steps and sampler as settled."""

    sampler: SamplerConfig


@dataclass(frozen=True)
class Partial:
    """A preview as an image file, after ``step`` steps."""

    index: int
    step: int
    data: bytes


@dataclass(frozen=True)
class Complete:
    """A finished image as a file."""

    index: int
    data: bytes


@dataclass(frozen=True)
class Ended:
    """The last message when all images are out; times as in the engine's Done."""

    seconds: float
    queued_seconds: float


@dataclass(frozen=True)
class Refused:
    """The last message otherwise; ``message`` may be shown to the client."""

    reason: Literal["invalid", "queue_full", "deadline", "cancelled", "closed", "internal", "lost"]
    message: str
    retry_after: float | None = None


Message = Accepted | Partial | Complete | Ended | Refused

REFUSALS: dict[str, str] = {
    "deadline": "the images were not done within the time a request may take; ask for fewer or fewer steps",
    "cancelled": "the request was cancelled",
    "closed": "the server is shutting down; try again",
    "internal": "the model failed on this request; try again, and tell the operator if it fails again",
}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the API must know of a model to check requests."""

    name: str
    labels: Labels
    image_size: int
    sampler: SamplerConfig
    guidable: bool
    """Whether guidance scales other than 1 mean anything."""
    created: int


class Backend(Protocol):
    """A model wherever it runs: `ModelService` here, or behind a handle of Ray Serve."""

    async def info(self) -> ModelInfo:
        """What it is; waits until the model is loaded."""
        ...

    def generate(self, order: Order) -> AsyncIterator[Message]:
        """Messages of an order: Accepted first unless refused. Closing the iterator cancels the order."""
        ...

    async def ready(self) -> bool:
        """Whether it would take an order now."""
        ...


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
        # Any: pyright does not take a cached_property for a property.
        self.engine = Engine(cast(Any, pipeline), config, observer)
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

    async def generate(self, order: Order) -> AsyncIterator[Message]:
        """See Backend."""
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            self._check_labels(order)
            # A table may take a while, once: not in the event loop.
            sampler = await asyncio.to_thread(self._sampler, order)
            await asyncio.to_thread(self.engine.plan, sampler)
            request = self.engine.submit(
                Job(
                    labels=order.labels,
                    sampler=sampler,
                    seed=order.seed,
                    previews=order.previews,
                    seconds=order.seconds,
                ),
                lambda event: _hand_over(loop, inbox, event),
            )
        except (UserError, QueueFull, Closed) as error:
            yield self._refusal(error)
            return
        try:
            yield Accepted(sampler)
            async for message in self._messages(order, inbox):
                yield message
        finally:
            request.cancel()

    async def _messages(self, order: Order, inbox: "asyncio.Queue[Event]") -> AsyncIterator[Message]:
        while True:
            event = await inbox.get()
            if isinstance(event, Preview):
                if inbox.qsize() > 2 * len(order.labels):
                    continue  # the reader is slow: what it would see is out of date
                yield Partial(event.index, event.step, await _encoded(event.pixels, order))
            elif isinstance(event, Picture):
                yield Complete(event.index, await _encoded(event.pixels, order))
            elif isinstance(event, Done):
                yield Ended(event.seconds, event.queued_seconds)
                return
            else:
                assert isinstance(event, Failed)
                yield Refused(event.reason, REFUSALS[event.reason])
                return

    def _check_labels(self, order: Order) -> None:
        """Labels were checked by what the API knows of the model, which in an update may be the one before."""
        most = max(len(self.pipeline.labels), 1) - 1
        if not all(0 <= label <= most for label in order.labels):
            raise UserError(f"model {self.name!r} has the classes 0 to {most}; ask again")

    def _sampler(self, order: Order) -> SamplerConfig:
        return self.pipeline.sampler(
            order.sampler, steps=order.num_inference_steps, guidance_scale=order.guidance_scale
        )

    def _refusal(self, error: Exception) -> Refused:
        if isinstance(error, QueueFull):
            return Refused("queue_full", "too many requests are waiting; try again later", error.retry_after)
        if isinstance(error, Closed):
            return Refused("closed", REFUSALS["closed"], 1.0)
        # Errors name the model by its place, which is no affair of the client's.
        return Refused("invalid", str(error).replace(self.pipeline.folder.store.uri, f"model {self.name!r}"))


def _hand_over(loop: asyncio.AbstractEventLoop, inbox: "asyncio.Queue[Event]", event: Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(inbox.put_nowait, event)


async def _encoded(pixels: np.ndarray, order: Order) -> bytes:
    return await asyncio.to_thread(encode, pixels, order.output_format, order.output_compression)


def encode(pixels: np.ndarray, output_format: OutputFormat, compression: int = 100) -> bytes:
    """Pixels uint8 [height, width, 3] as a file; ``compression`` 0-100 is the quality of jpeg and webp."""
    file = io.BytesIO()
    options = {"compress_level": 3} if output_format == "png" else {"quality": max(compression, 1)}
    Image.fromarray(pixels).save(file, format=output_format, **options)
    return file.getvalue()
