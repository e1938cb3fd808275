"""One model with its engine, as a deployment of Ray Serve."""

import logging
from collections.abc import AsyncIterator
from typing import Any

from ray_dit.config import Precision
from ray_dit.config.serve import EngineConfig
from ray_dit.serving.backend import ImageSpec, Message, ModelInfo
from ray_dit.serving.engine.policy import Load
from ray_dit.serving.scaling import STEPS_METRIC

logger = logging.getLogger(__name__)


class ModelReplica:
    """What `ReplicaBackend` talks to. The model is loaded here, in the replica's process."""

    def __init__(
        self,
        name: str,
        uri: str,
        engine: dict[str, Any],
        *,
        threads: int,
        precision: Precision,
        compile: bool,
        vae_precision: Precision,
        log_level: str,
    ) -> None:
        import torch

        from ray_dit.core.host_memory import keep_freed_memory
        from ray_dit.pipeline import load
        from ray_dit.serving.deployments.metrics import EngineMetrics
        from ray_dit.serving.service import ModelService

        set_up_logging(log_level)
        keep_freed_memory()
        torch.set_num_threads(threads)
        self._metrics = EngineMetrics(name)
        pipeline = load(uri, precision=precision, compile=compile, vae_precision=vae_precision)
        self._service = ModelService(name, pipeline, EngineConfig(**engine), self._metrics)
        logger.info("model %s: ready", name)

    async def info(self) -> ModelInfo:
        """See Backend."""
        return await self._service.info()

    async def ready(self) -> bool:
        """See Backend."""
        return await self._service.ready()

    async def generate(self, spec: ImageSpec) -> AsyncIterator[Message]:
        """See Backend."""
        async for message in self._service.generate(spec):
            yield message

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve, for the policy."""
        return {STEPS_METRIC: float(self._gauge().image_steps)}

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        self._gauge()
        if not await self._service.ready():
            raise RuntimeError("the engine fails at every step")

    def _gauge(self) -> Load:
        load = self._service.load()
        self._metrics.gauge(load)
        return load

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.close(timeout=5)


def set_up_logging(level: str) -> None:
    """The package's log lines to standard error, which Ray collects: requests as JSON, one per line."""
    package = logging.getLogger("ray_dit")
    package.setLevel(level.upper())
    package.propagate = False
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
