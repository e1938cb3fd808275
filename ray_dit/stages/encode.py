"""`ray-dit encode`: images to moments of the VAE's posterior, in shards.

Shard i holds the rows [i·S, (i+1)·S) of the plan, which lists the images in key order; an image that
cannot be read is set aside and listed, and its row is missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_dit.config import EncodeConfig
from ray_dit.core.latents import to_float
from ray_dit.errors import UserError
from ray_dit.folders.images import (
    PLAN_KEY,
    QUARANTINE_KEY,
    BadImage,
    ImagePlan,
    check_bad,
    load_images,
    plan_images,
    quarantine_bytes,
    refuse_output_inside,
)
from ray_dit.folders.sources import open_images
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.formats.model_folder import VAE_FOLDER
from ray_dit.ledger.job import Job
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.results import Manifest
from ray_dit.results import LatentShardFacts, LatentsResult
from ray_dit.runtime.planning import Known, Plan, Trial, plan_shards, stored_bytes
from ray_dit.runtime.repairing import finish_shards, take_finished
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker, shard_name
from ray_dit.runtime.shards import Work, all_markers, lanes_for, make_shards, shard_sizes
from ray_dit.stages.fingerprint import open_job

STAGE = LatentsResult.stage_name
UNIT = "images"
TRIAL_IMAGES = 128
"""Images of a trial's shard, about."""
MAX_TRIAL_IMAGES = 4096
"""Images of all of a trial's shards, at most."""


def encode(config: EncodeConfig) -> Manifest[LatentsResult]:
    """Encodes all images, or those still missing; returns the manifest."""
    from ray_dit.vae import files_sha256

    plan, vae = _inputs(config)
    files = vae.files()
    inputs = {"images": plan.sha256, "vae": files_sha256(files)}
    job = open_job(config, STAGE, inputs)
    build, gpus = _Build(config, job), 1 if config.use_gpu else 0
    sizes = shard_sizes(len(plan.keys), config.shard_size)
    inputs_of_actors: MadeAgain = {
        PLAN_KEY: plan.to_bytes,  # the actors read it: the driver need not hand it out
        **{f"{VAE_FOLDER}/{name}": lambda data=data: data for name, data in files.items()},
    }
    plain = {**inputs_of_actors, QUARANTINE_KEY: lambda: quarantine_bytes(_all_bad(job, len(sizes)))}
    manifest = take_finished(config, job, LatentsResult, build, gpus=gpus, plain=plain)
    if manifest is not None:
        return manifest
    for key, data in inputs_of_actors.items():
        job.put_plain(key, data())

    def make() -> None:
        with ray_session(config) as ray:
            make_shards(ray, config, job, build, _work(config, sizes), gpus=gpus)

    return finish_shards(job, make, lambda: _finish(config, plan, job, len(sizes), vae))


def plan_encode(config: EncodeConfig, *, begun: float) -> Plan:
    """What the job will make and take; see ``runtime.planning``."""
    plan, vae = _inputs(config)
    count, views = len(plan.keys), 2 if config.mirror else 1
    sizes = shard_sizes(count, config.shard_size)
    size = min(max(config.batch_size, TRIAL_IMAGES // config.batch_size * config.batch_size), max(sizes))
    # images of one class lie together, and may be larger than the others'
    spread = np.linspace(0, count - 1, min(count, MAX_TRIAL_IMAGES)).astype(np.int64)
    side = config.images.size // vae.downsample
    return plan_shards(
        config,
        _work(config, sizes),
        Trial(
            _TrialBuild(config.model_copy(update={"shard_size": size}), plan.take(spread)),
            size,
            len(spread) // size,
        ),
        Known(
            network_evaluations=sum(-(-rows // config.batch_size) for rows in sizes)
            * config.batch_size
            * views,
            bytes_in=stored_bytes(open_images(config.images.uri)),
            flops=float(count * views * vae.encode_flops(config.images.size)),
            bytes_out=count * views * 2 * vae.latent_channels * side * side * np.dtype(np.float16).itemsize,
            other_bytes=len(plan.to_bytes()) + sum(map(len, vae.files().values())),
            left_out="reading and decoding images is not counted",
        ),
        begun=begun,
        gpus=1 if config.use_gpu else 0,
    )


def _work(config: EncodeConfig, sizes: list[int]) -> Work:
    pixels = max(sizes) * config.images.size**2
    return Work(STAGE, UNIT, sizes, lanes_for(3 * pixels))


def _inputs(config: EncodeConfig) -> tuple[ImagePlan, Any]:
    """The images and the VAE; UserError where one is not there or they do not fit."""
    from ray_dit.vae import VAE

    refuse_output_inside(config.output, config.images)
    plan = plan_images(config.images)
    vae = VAE.load(config.vae)
    if config.images.size % vae.downsample:
        raise UserError(
            f"images.size {config.images.size} is not a multiple of {vae.downsample}, by which the VAE in "
            f"{config.vae} shrinks: change --images.size"
        )
    return plan, vae


@dataclass(frozen=True)
class _TrialBuild:
    """Makes the encoder of a trial, whose plan lies in no folder."""

    config: EncodeConfig
    plan: ImagePlan

    def __call__(self) -> ShardMaker:
        return Encoder(self.config, self.plan)


@dataclass(frozen=True)
class _Build:
    """Makes the encoder inside its actor."""

    config: EncodeConfig
    job: Job

    def __call__(self) -> ShardMaker:
        plan = ImagePlan.from_bytes(self.job.plain.get(PLAN_KEY), self.config.images.uri)
        return Encoder(self.config, plan)


@dataclass(frozen=True)
class Decoded:
    """The images of a shard.

    ``images`` uint8 [N, S, S, 3] are those of the rows ``kept``; ``bad`` are those that can't be read.
    """

    shard: int
    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    bad: list[BadImage]


class Encoder:
    """Makes latent shards: reads and crops, encodes, serialises."""

    def __init__(self, config: EncodeConfig, plan: ImagePlan) -> None:
        from ray_dit.vae import VAE

        self._config, self._plan = config, plan
        self._device = torch.device("cuda" if config.use_gpu else "cpu")
        self._vae = VAE.load(config.vae, device=self._device)

    def prepare(self, shard: int) -> Decoded:
        """The shard's images, read and cropped."""
        first = shard * self._config.shard_size
        rows = np.arange(first, min(first + self._config.shard_size, len(self._plan.keys)))
        return Decoded(shard, *load_images(self._plan, rows))

    def compute(self, inputs: Decoded) -> tuple[Decoded, LatentShard]:
        """Moments of the images, and of their mirror images where the job wants them."""
        kept, images = inputs.kept, inputs.images
        return inputs, LatentShard(
            keys=[self._plan.keys[row] for row in kept],
            labels=self._plan.labels[kept],
            heldout=self._plan.heldout[kept],
            moments=self._moments(images),
            moments_mirror=self._moments(images[:, :, ::-1]) if self._config.mirror else None,
        )

    def finish(self, outputs: tuple[Decoded, LatentShard]) -> Made:
        """The shard as Parquet."""
        inputs, latents = outputs
        sums, squares = channel_sums(latents)
        facts = LatentShardFacts(
            shard=inputs.shard,
            rows=len(inputs.kept),
            seen=len(inputs.kept) + len(inputs.bad),
            bad=tuple((entry.key, entry.reason) for entry in inputs.bad),
            train_rows=int((~latents.heldout).sum()),
            moments_sha256=array_sha256(latents.moments),
            sum=tuple(sums.tolist()),
            sum_squares=tuple(squares.tolist()),
        )
        return Made(f"latents/{shard_name(inputs.shard)}.parquet", latent_shard_bytes(latents), facts)

    def _moments(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Moments float16 [N, 2C, h, w].

        The last batch is filled up, since batch size decides the last bits.
        """
        size = self._config.batch_size
        parts: list[NDArray[np.float16]] = []
        with torch.inference_mode():
            for first in range(0, len(images), size):
                batch = images[first : first + size]
                filled = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
                moments = self._vae.encode(to_float(torch.from_numpy(filled).to(self._device)))
                parts.append(moments[: len(batch)].cpu().numpy().astype(np.float16))
        side = self._plan.size // self._vae.downsample
        empty = np.zeros((0, 2 * self._vae.latent_channels, side, side), np.float16)
        return np.concatenate(parts) if parts else empty


def channel_sums(latents: LatentShard) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Σ E z and Σ E z² of the latents over training rows, each [C].

    E z² = mean² + the posterior's variance.
    """
    moments = latents.moments[~latents.heldout].astype(np.float64)
    mean, log_variance = np.split(moments, 2, axis=1)
    second = np.square(mean) + np.exp(np.clip(log_variance, -30, 20))
    return mean.sum(axis=(0, 2, 3)), second.sum(axis=(0, 2, 3))


def _finish(
    config: EncodeConfig, plan: ImagePlan, job: Job, num_shards: int, vae: Any
) -> Manifest[LatentsResult]:
    markers = list(all_markers(job, num_shards, LatentShardFacts))
    shards = [marker.facts for marker in markers]
    bad = _bad(shards)
    check_bad(len(bad), len(plan.keys), config.images.max_bad, plan.uri, bad)
    job.put_plain(QUARANTINE_KEY, quarantine_bytes(bad))
    side = config.images.size // vae.downsample
    train_rows = sum(shard.train_rows for shard in shards)
    mean, std = _statistics(shards, train_rows * side * side)
    return job.finish(
        LatentsResult(
            classes=plan.classes,
            image_size=config.images.size,
            latent_shape=(vae.latent_channels, side, side),
            rows=sum(shard.rows for shard in shards),
            train_rows=train_rows,
            bad=len(bad),
            scaling_factor=float(vae.module.config.scaling_factor),
            mean=mean,
            std=std,
        ),
        objects=markers,
    )


def _bad(shards: Iterable[LatentShardFacts]) -> list[BadImage]:
    return [BadImage(*entry) for shard in shards for entry in shard.bad]


def _all_bad(job: Job, num_shards: int) -> list[BadImage]:
    return _bad(marker.facts for marker in all_markers(job, num_shards, LatentShardFacts))


def _statistics(shards: list[LatentShardFacts], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the raw latents, per channel, over training rows."""
    mean = np.sum([shard.sum for shard in shards], axis=0) / max(count, 1)
    squares = np.sum([shard.sum_squares for shard in shards], axis=0) / max(count, 1)
    std = np.sqrt(np.maximum(squares - mean**2, 1e-12))
    return tuple(mean.tolist()), tuple(std.tolist())
