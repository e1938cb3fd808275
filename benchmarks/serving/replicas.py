"""What is compared behind HTTP: the project's engine, and `@serve.batch` over the same model."""

import asyncio
import base64
from typing import Any

from benchmarks.serving.load import MOST_IMAGES
from benchmarks.serving.models import bulk_rate, counted_pipeline
from ray_dit.serving.engine.policy import StepCurve
from ray_dit.serving.engine.tickets import Observer


class StepTimes(Observer):
    """Time in steps, and what the profile said they would take."""

    def __init__(self) -> None:
        self.curve: StepCurve | None = None
        """The engine's, once it has one."""
        self.took = self.foreseen = 0.0

    def stepped(self, rows: int, seconds: float) -> None:
        if self.curve is not None:
            self.took += seconds
            self.foreseen += self.curve.seconds(rows)


class EngineReplica:
    """The project's engine.

    The methods of ray_dit.serving.deployments.replica.ModelReplica, and what a benchmark asks beside them.
    """

    def __init__(self, name: str, engine: dict[str, Any], **model: Any) -> None:
        from ray_dit.config.serve import EngineConfig
        from ray_dit.serving.service import ModelService

        self.pipeline, self.counted = counted_pipeline(**model)
        self.counted.ahead = False  # the profile waits for each call
        self.times = StepTimes()
        self.service = ModelService(name, self.pipeline, EngineConfig(**engine), self.times)
        self.times.curve = self.service.engine.curve
        self.counted.ahead = True

    async def info(self) -> Any:
        return await self.service.info()

    async def ready(self) -> bool:
        return await self.service.ready()

    async def generate(self, order: Any) -> Any:
        async for message in self.service.generate(order):
            yield message

    async def rows(self) -> int:
        return self.counted.rows

    async def curve(self) -> tuple[list[int], list[float], int]:
        curve = self.service.engine.curve
        return curve.rows, [curve.seconds(rows) for rows in curve.rows], self.service.engine.max_step_rows

    async def slowdown(self) -> float:
        """How much longer steps took than in the profile, since this was asked last."""
        ratio = self.times.took / (self.times.foreseen or 1.0)
        self.times.took = self.times.foreseen = 0.0
        return ratio

    async def bulk(self, images: int, seconds: float) -> float:
        return await asyncio.to_thread(bulk_rate, self.pipeline, self.counted, images, seconds)


class BatchReplica:
    """The baseline: whole requests, batched; @serve.batch is put on in ``baseline``."""

    def __init__(self, **model: Any) -> None:
        self.pipeline, self.counted = counted_pipeline(**model)

    async def rows(self) -> int:
        return self.counted.rows

    def run(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import torch

        from ray_dit.core.sampling import TableBank, init_rows, sample
        from ray_dit.serving.service import encode

        pipeline, owners = self.pipeline, [i for i, body in enumerate(bodies) for _ in range(body["n"])]
        tables = [
            pipeline.table(pipeline.sampler(None, steps=body["num_inference_steps"])) for body in bodies
        ]
        rows = init_rows(
            pipeline.latent_shape,
            labels=torch.zeros(len(owners), dtype=torch.int64),
            sample_id=torch.arange(len(owners)),
            seed=0,
            guidance_scale=2.0,
            table=torch.tensor(owners),
        )
        pixels = pipeline.decode(sample(pipeline.guided_model, rows, TableBank(tables)))
        answers: list[dict[str, Any]] = [{"data": []} for _ in bodies]
        for owner, image in zip(owners, pixels, strict=True):
            answers[owner]["data"].append({"b64_json": base64.b64encode(encode(image, "png")).decode()})
        return answers


def baseline(max_batch_size: int, wait: float, **arguments: Any) -> Any:
    """The deployment to compare with: whole requests, batched by `@serve.batch`."""
    from ray import serve

    from ray_dit.serving.deployments.application import QUIET

    class Batched(BatchReplica):
        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=wait)
        async def batched(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return await asyncio.to_thread(self.run, bodies)

        async def __call__(self, request: Any) -> Any:
            return await self.batched(await request.json())

    deployment: Any = serve.deployment(
        Batched, name="batched", max_ongoing_requests=10_000, logging_config=QUIET
    )
    return deployment.bind(**arguments)


def batch_size(max_rows: int) -> int:
    """Requests in a batch of the baseline: as many as fill a call of ``max_rows`` rows of the network.

    Each is taken to ask for the most images.
    """
    return max(1, max_rows // (2 * MOST_IMAGES))
