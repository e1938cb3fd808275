"""`ray-dit encode`: images to moments of the VAE's posterior, in shards.

Shard i holds the rows [i·S, (i+1)·S) of the plan, which lists the images in key order and is fixed when the
job begins; an image that cannot be read, is gone or has changed is set aside and listed, and its row is
missing. An extension plans and encodes what is new.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_dit.config import EncodeConfig
from ray_dit.core.latents import to_float
from ray_dit.errors import Conflict, UserError
from ray_dit.folders.images import ImagePlan, plan_images, refuse_output_inside
from ray_dit.folders.latent_plans import (
    as_found,
    await_plan,
    bad_images,
    begun_plan,
    extension_plan,
    generation_of_key,
    made_again,
    quarantine_key,
)
from ray_dit.folders.listing import HERE, ListedBy, forget_rows
from ray_dit.folders.plan_parts import AnyPlan
from ray_dit.folders.reading import FLEETING, BadImage, check_bad, load_images, quarantine_bytes
from ray_dit.folders.stored_plans import Planned, plan_key, read_plan
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.formats.model_folder import VAE_FOLDER
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import check_finished, manifest_key, manifest_objects
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.results import Manifest, Marker
from ray_dit.results import LatentShardFacts, LatentsResult
from ray_dit.runtime.planning import Known, Plan, Trial, plan_shards
from ray_dit.runtime.repairing import finish_shards, take_finished
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker, make_shard, shard_name
from ray_dit.runtime.shards import Work, all_markers, lanes_for, make_shards, shard_sizes
from ray_dit.runtime.tasks import in_tasks
from ray_dit.stages.fingerprint import open_job, rules_with_plan
from ray_dit.storage.open import open_output, open_store

STAGE = LatentsResult.stage_name
UNIT = "images"
TRIAL_IMAGES = 128
"""Images of a trial's shard, about."""
MAX_TRIAL_IMAGES = 4096
"""Images of all of a trial's shards, at most."""


def encode(config: EncodeConfig) -> Manifest[LatentsResult]:
    """Encodes all images, or those still missing, or with ``--extend`` those that are new.

    Returns the manifest, of all generations.
    """
    from ray_dit.vae import files_sha256

    refuse_output_inside(config.output, config.images)  # before anything is written there
    by = ListedBy(in_tasks(config), open_output(config.output))
    planned, vae = _inputs(config, by)
    files = vae.files()
    planned, job = begin(config, planned, files_sha256(files), by)
    build, gpus = _Build.of(config, job, planned.plan), 1 if config.use_gpu else 0
    sizes = shard_sizes(planned.plan.count, config.shard_size)
    copies: MadeAgain = {f"{VAE_FOLDER}/{name}": lambda data=data: data for name, data in files.items()}
    plain = {**copies, **made_again(job.store, config.images, planned, by)}
    manifest = take_finished(config, job, LatentsResult, build, gpus=gpus, plain=plain)
    if manifest is not None:
        if not config.extend:
            _tell("finished: images added since it was begun are left out; --extend adds them")
        return manifest
    if job.is_finished():  # whose manifest is lost, and the plan perhaps too
        planned.stored(job)
    for key, data in copies.items() if not job.generation else ():
        job.put_plain(key, data())

    def make() -> None:
        with ray_session(config) as ray:
            make_shards(ray, config, job, build, _work(config, sizes), gpus=gpus)

    return finish_shards(job, make, lambda: _finish(config, planned.plan, job, len(sizes), vae))


def plan_encode(config: EncodeConfig, *, begun: float) -> Plan:
    """What the job will make and take; see ``runtime.planning``."""
    refuse_output_inside(config.output, config.images)
    planned, vae = _inputs(config, ListedBy(in_tasks(config)))
    plan, number = planned.plan, planned.generation
    count, views = plan.count, 2 if config.mirror else 1
    sizes = shard_sizes(count, config.shard_size)
    size = min(max(config.batch_size, TRIAL_IMAGES // config.batch_size * config.batch_size), max(sizes))
    # images of one class lie together, and may be larger than the others'
    spread = np.linspace(0, count - 1, min(count, MAX_TRIAL_IMAGES)).astype(np.int64)
    side = config.images.size // vae.downsample
    return plan_shards(
        config,
        _work(config, sizes, number),
        Trial(
            _TrialBuild(config.model_copy(update={"shard_size": size}), plan.take(spread)),
            size,
            len(spread) // size,
        ),
        Known(
            network_evaluations=sum(-(-rows // config.batch_size) for rows in sizes)
            * config.batch_size
            * views,
            bytes_in=plan.stored_bytes(),
            flops=float(count * views * vae.encode_flops(config.images.size)),
            bytes_out=count * views * 2 * vae.latent_channels * side * side * np.dtype(np.float16).itemsize,
            other_bytes=planned.stored_bytes() + (0 if number else sum(map(len, vae.files().values()))),
            left_out="reading and decoding images is not counted",
        ),
        begun=begun,
        gpus=1 if config.use_gpu else 0,
    )


def _work(config: EncodeConfig, sizes: list[int], generation: int = 0) -> Work:
    """The shards of a generation, with as many under way as fit into memory."""
    lanes = lanes_for(3 * max(sizes) * config.images.size**2)
    return Work(STAGE, UNIT, sizes, lanes, generation=generation)


def _inputs(config: EncodeConfig, by: ListedBy) -> tuple[Planned, Any]:
    """The images and the VAE; UserError where one is not there or they do not fit."""
    from ray_dit.vae import VAE

    planned = planned_images(config, by)
    vae = VAE.load(config.vae)
    if config.images.size % vae.downsample:
        raise UserError(
            f"images.size {config.images.size} is not a multiple of {vae.downsample}, by which the VAE in "
            f"{config.vae} shrinks: change --images.size"
        )
    return planned, vae


def planned_images(config: EncodeConfig, by: ListedBy = HERE) -> Planned:
    """What the folder's job has planned, or what is new to it, or the plan of a new job."""
    store = open_output(config.output)
    planned = begun_plan(store, config.images, by)
    if planned is None:
        if config.extend:
            check_finished(store, STAGE)
        return Planned.new(plan_images(config.images, by))
    number = planned.generation
    finished = store.head(manifest_key(number)) is not None
    if config.extend and finished:
        plan = extension_plan(store, config.images, number + 1, by)
        if plan is not None:
            _tell(f"extension {number + 1}: {plan.count} images are new")
            return Planned.new(plan, number + 1)
        _tell(f"nothing is new: all images in {config.images.uri} were there before")
    elif number and not finished:
        _tell(f"going on with extension {number} of {planned.plan.count} images")
    return replace(planned, plan=as_found(store, planned.plan))


def begin(config: EncodeConfig, planned: Planned, vae: str, by: ListedBy = HERE) -> tuple[Planned, Job]:
    """The job, with its plan stored.

    Where another driver has begun it, of the images as it found them a moment before or later, its plan
    counts.
    """

    def opened(planned: Planned) -> Job:
        return open_job(
            config,
            STAGE,
            {"images": planned.plan.sha256, "vae": vae},
            extend=config.extend,
            may_change=("inputs.images",),
            rules=rules_with_plan(STAGE, planned.rules),
        )

    try:
        job = opened(planned)
    except Conflict:
        theirs = None if planned.rules else await_plan(open_store(config.output), config.images, by=by)
        if theirs is None or theirs.generation != planned.generation:
            raise
        planned, job = theirs, opened(theirs)
    if not planned.is_stored and not job.is_finished():
        planned = planned.stored(job)
    forget_rows(job.store)
    return planned, job


def _tell(what: str) -> None:
    print(f"{STAGE}: {what}", file=sys.stderr)


@dataclass(frozen=True)
class _TrialBuild:
    """Makes the encoder of a trial, whose plan lies in no folder."""

    config: EncodeConfig
    plan: ImagePlan

    def __call__(self) -> ShardMaker:
        return Encoder(self.config, self.plan)


@dataclass(frozen=True)
class _Build:
    """Makes the encoder inside its actor, which reads of the plan what it works on."""

    config: EncodeConfig
    job: Job
    sha256: str
    """Of the plan."""
    by_size: bool
    """Whether objects are known by their sizes alone, see ``as_found``."""

    @classmethod
    def of(cls, config: EncodeConfig, job: Job, plan: AnyPlan) -> "_Build":
        return cls(config, job, plan.sha256, not plan.knows_versions)

    def __call__(self) -> ShardMaker:
        plan = read_plan(self.job.store, self.job.generation, self.config.images.uri)
        if plan.sha256 != self.sha256:
            raise UserError(
                f"{self.job.store.where(plan_key(self.job.generation))} is the plan of other images than "
                "this run was begun with: run the same command again"
            )
        return Encoder(self.config, plan.by_size() if self.by_size else plan, self.job)


@dataclass(frozen=True)
class Decoded:
    """The images of a shard.

    ``images`` uint8 [N, S, S, 3] are those of the rows ``kept`` of its ``plan``; ``bad`` are the others.
    """

    shard: int
    plan: ImagePlan
    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    bad: list[BadImage]


class Encoder:
    """Makes latent shards: reads and crops, encodes, serialises."""

    def __init__(
        self,
        config: EncodeConfig,
        plan: AnyPlan,
        job: Job | None = None,
        *,
        vae: Any = None,
        lost: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        from ray_dit.vae import VAE

        self._config, self._plan, self._job = config, plan, job
        self._device = torch.device("cuda" if config.use_gpu else "cpu")
        self._vae = VAE.load(config.vae, device=self._device) if vae is None else vae
        self._lost = lost

    def prepare(self, shard: int) -> Decoded:
        """The shard's images, read and cropped; without those that are known to be ``lost``, by key."""
        first = shard * self._config.shard_size
        plan = self._plan.part(first, min(first + self._config.shard_size, self._plan.count))
        lost = [row for row, key in enumerate(plan.keys) if key in self._lost] if self._lost else []
        images, kept, bad = load_images(plan, [row for row in range(plan.count) if row not in lost])
        bad += [BadImage(plan.keys[row], self._lost[plan.keys[row]]) for row in lost]
        return Decoded(shard, plan, images, kept, bad)

    def make_again(self, key: str, facts: Mapping[str, Any]) -> Made:
        """The shard at ``key`` of any generation, as it was: without the images that were lost then.

        UserError where others are lost by now.
        """
        known = LatentShardFacts.model_validate(facts)
        lost = {image: reason for image, reason in known.bad if reason in FLEETING}
        assert self._job is not None, "a trial's shards are not repaired"
        store, generation = self._job.store, generation_of_key(key)
        plan = self._plan
        if generation != self._job.generation:
            plan = as_found(store, read_plan(store, generation, self._config.images.uri))
        job = replace(self._job, generation=generation)
        made = make_shard(Encoder(self._config, plan, job, vae=self._vae, lost=lost), known.shard)
        for image, reason in LatentShardFacts.model_validate(made.facts.to_json()).bad:
            if reason in FLEETING and image not in lost:
                raise UserError(
                    f"{store.where(key)} can't be made again, as {image} in {plan.uri} is {reason}: bring "
                    "back what was there, or restore the object from a copy"
                )
        return made

    def compute(self, inputs: Decoded) -> tuple[Decoded, LatentShard]:
        """Moments of the images, and of their mirror images where the job wants them."""
        kept, images = inputs.kept, inputs.images
        return inputs, LatentShard(
            keys=inputs.plan.keys[kept].tolist(),
            labels=inputs.plan.labels[kept],
            heldout=inputs.plan.heldout[kept],
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
        prefix = self._job.prefix if self._job else ""
        key = f"latents/{prefix}{shard_name(inputs.shard)}.parquet"
        varies = any(entry.is_fleeting for entry in inputs.bad)
        return Made(key, latent_shard_bytes(latents), facts, varies=varies)

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
    config: EncodeConfig, plan: AnyPlan, job: Job, num_shards: int, vae: Any
) -> Manifest[LatentsResult]:
    markers = list(all_markers(job, num_shards, LatentShardFacts))
    bad = bad_images(marker.facts for marker in markers)
    _check_bad(config, plan, job, markers)
    job.put_plain(quarantine_key(job.generation), quarantine_bytes(bad))
    shards = [*_before(job), *(marker.facts for marker in markers)]
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
            bad=sum(len(shard.bad) for shard in shards),
            scaling_factor=float(vae.module.config.scaling_factor),
            mean=mean,
            std=std,
        ),
        objects=markers,
    )


def _before(job: Job) -> list[LatentShardFacts]:
    """What is known of the shards of the generations before."""
    if not job.generation:
        return []
    manifest = replace(job, generation=job.generation - 1).manifest(LatentsResult)
    assert manifest is not None, "only what is finished is extended"
    return [marker.facts for marker in manifest_objects(job.store, manifest, LatentShardFacts)]


def _check_bad(
    config: EncodeConfig, plan: AnyPlan, job: Job, markers: list[Marker[LatentShardFacts]]
) -> None:
    """UserError where too many of this generation's images are bad.

    Shards that lack images which may come back are then made again by the next run.
    """
    bad = bad_images(marker.facts for marker in markers)
    try:
        check_bad(len(bad), plan.count, config.images.max_bad, plan.uri, bad)
    except UserError:
        if not job.is_finished():
            job.forget(
                shard_name(marker.facts.shard)
                for marker in markers
                if any(entry.is_fleeting for entry in bad_images([marker.facts]))
            )
        raise


def _statistics(shards: list[LatentShardFacts], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the raw latents, per channel, over training rows."""
    mean = np.sum([shard.sum for shard in shards], axis=0) / max(count, 1)
    squares = np.sum([shard.sum_squares for shard in shards], axis=0) / max(count, 1)
    std = np.sqrt(np.maximum(squares - mean**2, 1e-12))
    return tuple(mean.tolist()), tuple(std.tolist())
