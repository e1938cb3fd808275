"""Between the HTTP API and a model wherever it runs: what is asked, what comes back.

Plain data that can travel. Knows neither HTTP nor engine. `ray_dit.serving.service` is a backend in this
process, `ray_dit.serving.deployments` has one behind a handle of Ray Serve.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ray_dit.config import SamplerConfig
from ray_dit.formats.labels import Labels

OutputFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The images a request asks for, their labels known to be right; None keeps the model's own setting.

    Image i is a function of (seed, i, its label, sampler), so whoever makes it makes the same.
    """

    labels: tuple[int, ...]
    seed: int
    sampler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    previews: int = 0
    seconds: float | None = None
    """Time it may take in all."""
    output_format: OutputFormat = "png"
    output_compression: int = 100
    """0-100, the quality of jpeg and webp."""
    image_steps: int = 1
    """Images times steps, by which the spec is weighed where it is routed; decides nothing of the images."""


@dataclass(frozen=True)
class Accepted:
    """The first message of a spec that was taken; its steps and sampler as settled."""

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
    """The last message when all images are out; seconds in the engine, and of these before the first step."""

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
    """Seconds since 1970."""


class Backend(Protocol):
    """A model wherever it runs."""

    async def info(self) -> ModelInfo:
        """What it is; waits until the model is loaded."""
        ...

    def generate(self, spec: ImageSpec) -> AsyncIterator[Message]:
        """Messages of a spec: Accepted first unless refused. Closing the iterator cancels it."""
        ...

    async def ready(self) -> bool:
        """Whether it would take a spec now."""
        ...
