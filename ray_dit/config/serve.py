"""Settings of the image endpoint: what is served, where, on how many replicas, and what a client may ask for.

Each limit says what it counts: a replica of the API, a replica of a model's engine, or everything. Serving
makes no job: nothing of it is in a fingerprint.
"""

import ipaddress
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_dit.config.base import Config, NonNegativeInt, PositiveInt, Precision, Seconds, Uri


class EngineConfig(Config):
    """One engine: the rows it keeps and the requests it takes. All counts are per replica of a model."""

    max_step_rows: PositiveInt = 128
    """Most rows of one call of the network, unconditional ones among them; the profile of step times may
    lower it."""
    profile_seconds: Annotated[float, Field(ge=0)] = 10.0
    """Most time for measuring that profile at the start; 0 leaves it out, and then nothing is learnt from
    steps either."""
    pad_calls: bool = False
    """Pad calls to 1, 2, 4, ... rows, so that a device that prepares itself for each size meets few; a
    compiled model's calls always are."""
    slots: PositiveInt = 256
    """Images on their way at once: what bounds the engine's memory."""
    max_queued: NonNegativeInt = 256
    """Requests that may wait for a slot; further ones are answered 429."""
    decode_batch: PositiveInt = 8
    """Images the VAE decodes at once."""


class LimitsConfig(Config):
    """What one request and one key may ask for.

    Rates and counts are per replica of the API (one by default).
    """

    max_images: Annotated[int, Field(gt=0, le=10)] = 10
    """Images per request."""
    max_inference_steps: Annotated[int, Field(gt=0, le=1000)] = 250
    """Denoising steps per image."""
    max_total_steps: PositiveInt = 2500
    """Images times steps per request."""
    max_partial_images: Annotated[int, Field(ge=0, le=50)] = 10
    """Previews per image; OpenAI's clients know up to 3."""
    max_body_bytes: PositiveInt = 64 * 1024
    """Length of a request's body."""
    max_header_bytes: Annotated[int, Field(ge=1000)] = 32 * 1024
    """Length of a request's target and headers."""
    body_seconds: Seconds = 10.0
    """Time for a body to arrive."""
    request_seconds: Seconds = 300.0
    """Time for a request in all; what is not done then is answered 504."""
    requests_per_minute: PositiveInt = 600
    """Requests for images per key and minute, in bursts of up to a tenth of it (at least 10)."""
    max_concurrent: PositiveInt = 64
    """Requests for images per key at once."""


class ApiConfig(Config):
    """The HTTP side: who may ask, for what, under which names of the host."""

    compatibility: Literal["openai", "strict"] = "openai"
    """openai: what OpenAI's clients send is read as they mean it, and what has no meaning here is named in a
    header; strict: every field must be exactly right."""
    aliases: tuple[str, ...] = ()
    """Other names of served models, each ALIAS=MODEL, such as dall-e-3=digits."""
    ready_without_key: bool = False
    """Answer /ready without a key too, for load balancers that can't send one."""
    limits: LimitsConfig = LimitsConfig()
    keys_file: Uri | None = None
    """File of API keys, one line `name:sha256-of-the-key` per key; the variable RAY_DIT_API_KEYS may hold
    such lines too. Without any key everyone who reaches the port may ask."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """Host names a request may be addressed to (against DNS rebinding); * allows any."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks (10.0.0.0/8) of proxies in front, whose X-Forwarded-For the log believes."""

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise ValueError(f"{error}: give an address or a network such as 10.0.0.0/8") from None
        return texts

    def models_by_alias(self, models: Collection[str]) -> dict[str, str]:
        """The served model behind each alias; ValueError where an alias leads nowhere or hides a model."""
        found: dict[str, str] = {}
        for text in self.aliases:
            alias, equals, model = text.partition("=")
            if not (equals and alias and model):
                raise ValueError(f"alias {text!r} is not ALIAS=MODEL, such as dall-e-3=digits")
            if model not in models:
                raise ValueError(f"alias {text!r}: no model {model!r} is served, only {', '.join(models)}")
            if alias in models:
                raise ValueError(f"alias {text!r} would hide the model of that name; choose another alias")
            if found.setdefault(alias, model) != model:
                raise ValueError(f"alias {alias!r} is given twice, for {found[alias]!r} and {model!r}")
        return found


class ServeConfig(Config):
    """`ray-dit serve`: models behind an HTTP API compatible with OpenAI's images API, and a page."""

    model: tuple[str, ...]
    """Model folders, each a path or fsspec URI, or NAME=URI; the first is the default."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in: set API keys then, and allowed_hosts."""
    port: Annotated[int, Field(gt=0, lt=65536)] = 8000
    metrics_port: Annotated[int, Field(gt=0, lt=65536)] | None = None
    """Port at which a private Ray tells Prometheus its metrics; by default one that is free. A cluster has
    its own."""
    address: str = "local"
    """local: a private Ray on this machine; auto or host:port: the cluster that is there."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of a private Ray; by default this machine's, at least 4."""
    use_gpu: bool = False
    """Give each replica of a model a GPU."""
    threads: PositiveInt = 1
    """torch threads per replica, without a GPU."""
    precision: Precision = "float32"
    """What the transformers' matrix products compute in; bfloat16 is faster and changes pixels a little."""
    vae_precision: Precision = "float32"
    """What the VAEs compute in; bfloat16 is faster on GPUs and changes pixels by a few levels."""
    compile: bool = False
    """Let TorchInductor compile transformers and VAEs: faster steps, pixels a little other. Each replica does
    so at its start, for calls of 1, 2, 4, ... rows, about a minute each; calls are padded to these."""
    replicas: PositiveInt = 1
    """Replicas of each model, at least."""
    max_replicas: PositiveInt | None = None
    """Replicas of each model, at most: autoscaling between the two; by default as many as ``replicas``."""
    image_steps_per_replica: PositiveInt = 1600
    """Autoscaling aims at so many steps that images, on their way and waiting, have yet to take, per
    replica: 64 images of 25 steps."""
    upscale_seconds: Annotated[float, Field(ge=0)] = 10.0
    """More replicas are started once they were wanted for so long."""
    downscale_seconds: Annotated[float, Field(ge=0)] = 300.0
    """A replica too many is stopped after so long; it finishes its requests."""
    api_replicas: PositiveInt = 1
    """Replicas of the HTTP API; with more than one, each counts rates and concurrency of keys for itself."""
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 100
    """In an update, new replicas beside the old ones until they are ready; 0 where there are no GPUs to
    spare: then the old ones stop first, and a single replica's requests are answered 503 while the new one
    loads."""
    drain_seconds: Seconds = 300.0
    """How long a replica that is to stop may finish its requests."""
    engine: EngineConfig = EngineConfig()
    api: ApiConfig = ApiConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _fits(self) -> "ServeConfig":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than replicas {self.replicas}")
        names = [name for name, _ in self.models()]
        if not names:
            raise ValueError("give at least one model")
        if len(set(names)) < len(names):
            raise ValueError(f"two models have the same name ({', '.join(names)}); name them: NAME=URI")
        self.api.models_by_alias(names)
        return self

    def models(self) -> list[tuple[str, str]]:
        """Name and URI of each model.

        A URI without a name is called by its last part, or by the one before where that is only `model`.
        """
        return [_named(model) for model in self.model]


def _named(model: str) -> tuple[str, str]:
    name, equals, uri = model.partition("=")
    if equals and "/" not in name and ":" not in name:
        return name, uri
    parts = PurePosixPath(re.sub(r"^\w+:/*", "", model.split("?")[0])).parts
    if not parts:
        return model, model
    # Training writes RUN/model: it is RUN that tells one model from another.
    by_parent = parts[-1] == "model" and len(parts) > 1 and parts[-2] not in ("/", "..", "~")
    return parts[-2 if by_parent else -1], model
