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
from ray_dit.errors import Conflict, CredentialsExpired, StoreFailure, UserError
from ray_dit.folders.careful import ChildDecoder, SureDecoder
from ray_dit.folders.duplicates import duplicates_key, find_duplicates
from ray_dit.folders.images import ImagePlan, plan_images, refuse_output_inside
from ray_dit.folders.latent_counts import (
    BadCount,
    check_bad_shards,
    check_counts,
    made_shards,
    shards_before,
    statistics,
)
from ray_dit.folders.latent_plans import (
    as_found,
    await_plan,
    bad_images,
    begun_plan,
    extension_plan,
    generation_of_key,
    made_again,
)
from ray_dit.folders.listing import HERE, ListedBy, forget_rows
from ray_dit.folders.loading import BYTES_AHEAD, Loader
from ray_dit.folders.plan_parts import AnyPlan
from ray_dit.folders.quarantine import put_quarantine
from ray_dit.folders.reading import Loaded
from ray_dit.folders.stored_plans import Planned, plan_key, read_plan
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.latent_layout import index_facts
from ray_dit.formats.latents import LatentShard, channel_sums, latent_shard_bytes
from ray_dit.formats.model_folder import VAE_FOLDER
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import check_finished, manifest_key
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.results import Manifest
from ray_dit.results import (
    BadImage,
    LatentShardFacts,
    LatentsResult,
    PrecisionError,
    conversions_of,
    precision_error_of,
)
from ray_dit.runtime.planning import Known, Plan, Trial, plan_shards
from ray_dit.runtime.repairing import finish_shards, take_finished
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker, make_shard, shard_name
from ray_dit.runtime.shards import Work, all_markers, lanes_for, make_shards, shard_sizes
from ray_dit.runtime.tasks import in_tasks
from ray_dit.stages.fingerprint import ROWS_SINCE, open_job, rules_with_plan
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
    build, gpus = _Build.of(config, job, planned), 1 if config.use_gpu else 0
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
        made = list(made_shards(job))
        check_bad_shards(config.images, planned.plan, job, made, so_far=True)
        count = BadCount(planned.plan, config.images.max_bad, made)
        try:
            with ray_session(config) as ray:
                make_shards(ray, config, job, build, _work(config, sizes), gpus=gpus, enough=count)
        except (StoreFailure, CredentialsExpired):
            raise
        except UserError:  # perhaps that there are too many: then by all that is known by now
            check_bad_shards(config.images, planned.plan, job, list(made_shards(job)), so_far=True)
            raise

    return finish_shards(job, make, lambda: _finish(config, planned.plan, job, sizes, vae))


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
            precision=config.precision,
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
    shard_bytes = 3 * max(sizes) * config.images.size**2
    return Work(
        STAGE,
        UNIT,
        sizes,
        lanes_for(shard_bytes),
        generation=generation,
        shard_bytes=shard_bytes,
        shared_bytes=BYTES_AHEAD,
    )


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
    by_row: bool
    """Whether the rows of its shards can be read one by one, see ``ROWS_SINCE``."""

    @classmethod
    def of(cls, config: EncodeConfig, job: Job, planned: Planned) -> "_Build":
        plan, rules = planned.plan, rules_with_plan(STAGE, planned.rules)
        return cls(config, job, plan.sha256, not plan.knows_versions, rules is None or rules >= ROWS_SINCE)

    def __call__(self) -> ShardMaker:
        plan = read_plan(self.job.store, self.job.generation, self.config.images.uri)
        if plan.sha256 != self.sha256:
            raise UserError(
                f"{self.job.store.where(plan_key(self.job.generation))} is the plan of other images than "
                "this run was begun with: run the same command again"
            )
        plan = plan.by_size() if self.by_size else plan
        return Encoder(self.config, plan, self.job, by_row=self.by_row)


@dataclass(frozen=True)
class Decoded:
    """The images of a shard, of which ``plan`` is the part."""

    shard: int
    plan: ImagePlan
    loaded: Loaded


class Encoder:
    """Makes latent shards: reads and crops, encodes, serialises."""

    def __init__(
        self,
        config: EncodeConfig,
        plan: AnyPlan,
        job: Job | None = None,
        *,
        vae: Any = None,
        loader: Loader | None = None,
        child: ChildDecoder | None = None,
        lost: Mapping[str, BadImage] = MappingProxyType({}),
        by_row: bool = True,
    ) -> None:
        from ray_dit.vae import VAE

        self._config, self._plan, self._job, self._by_row = config, plan, job, by_row
        self._device = torch.device("cuda" if config.use_gpu else "cpu")
        self._exact: VAE = VAE.load(config.vae, device=self._device) if vae is None else vae
        self._vae = self._exact.to_precision(config.precision)
        self._lost = lost
        self._child = child or ChildDecoder()
        self._loader = loader or Loader(config.own_threads, decode=SureDecoder(self._child))

    def prepare(self, shard: int) -> Decoded:
        """The shard's images, read and cropped; without those that are known to be ``lost``, by key."""
        return self._loaded(shard, self._loader)

    def prepare_carefully(self, shard: int) -> Decoded:
        """The same, decoded image by image in a process of their own; what ends that is set aside."""
        loader = Loader(1, decode=self._child)
        try:
            return self._loaded(shard, loader)
        finally:
            loader.close()
            self._child.close()

    def _loaded(self, shard: int, loader: Loader) -> Decoded:
        first = shard * self._config.shard_size
        plan = self._plan.part(first, min(first + self._config.shard_size, self._plan.count))
        lost = self._lost
        loaded = loader.load(plan, [row for row, key in enumerate(plan.keys) if key not in lost])
        found = {entry.key: entry for entry in loaded.bad}
        found |= {key: lost[key] for key in plan.keys if key in lost}
        bad = [found[key] for key in plan.keys if key in found]
        return Decoded(shard, plan, replace(loaded, bad=bad))

    def make_again(self, key: str, facts: Mapping[str, Any]) -> Made:
        """The shard at ``key`` of any generation, as it was: without the images that were lost then.

        UserError where others are lost by now.
        """
        known = LatentShardFacts.model_validate(facts)
        lost = {entry.key: entry for entry in known.set_aside if entry.is_fleeting}
        assert self._job is not None, "a trial's shards are not repaired"
        store, generation = self._job.store, generation_of_key(key)
        plan = self._plan
        if generation != self._job.generation:
            plan = as_found(store, read_plan(store, generation, self._config.images.uri))
        job = replace(self._job, generation=generation)
        by_row = known.index_sha256 is not None
        made = make_shard(self._like(plan, job, lost, by_row=by_row), known.shard)
        for entry in LatentShardFacts.model_validate(made.facts.to_json()).set_aside:
            if entry.is_fleeting and entry.key not in lost:
                raise UserError(
                    f"{store.where(key)} can't be made again, as {entry.key} in {plan.uri} is {entry.code}: "
                    "bring back what was there, or restore the object from a copy"
                )
        return made

    def _like(self, plan: AnyPlan, job: Job, lost: Mapping[str, BadImage], *, by_row: bool) -> "Encoder":
        mine: dict[str, Any] = {"vae": self._exact, "loader": self._loader, "child": self._child}
        return Encoder(self._config, plan, job, **mine, lost=lost, by_row=by_row)

    def compute(self, inputs: Decoded) -> tuple[Decoded, LatentShard, PrecisionError | None]:
        """Moments of the images, and of their mirror images where the job wants them.

        In the first shard also how far they are from those of float32.
        """
        kept, images = inputs.loaded.kept, inputs.loaded.images
        latents = LatentShard(
            keys=inputs.plan.keys[kept].tolist(),
            labels=inputs.plan.labels[kept],
            heldout=inputs.plan.heldout[kept],
            image_sha256=inputs.loaded.sha256,
            moments=self._moments(images),
            moments_mirror=self._moments(images[:, :, ::-1]) if self._config.mirror else None,
        )
        is_sample = inputs.shard == 0 and len(images) and self._vae is not self._exact
        return inputs, latents, self._precision_error(images) if is_sample else None

    def finish(self, outputs: tuple[Decoded, LatentShard, PrecisionError | None]) -> Made:
        """The shard as Parquet."""
        inputs, latents, error = outputs
        loaded = inputs.loaded
        sums, squares = channel_sums(latents)
        data = latent_shard_bytes(latents, by_row=self._by_row)
        more: dict[str, Any] = {} if error is None else {"precision_error": error}
        if self._by_row:
            more |= index_facts(data)
        facts = LatentShardFacts(
            shard=inputs.shard,
            rows=len(loaded.kept),
            seen=len(loaded.kept) + len(loaded.bad),
            bad=tuple(loaded.bad),
            converted=loaded.converted,
            conversions=dict(loaded.conversions),
            train_rows=int((~latents.heldout).sum()),
            moments_sha256=array_sha256(latents.moments),
            images_sha256=array_sha256(loaded.sha256),
            sum=tuple(sums.tolist()),
            sum_squares=tuple(squares.tolist()),
            **more,
        )
        prefix = self._job.prefix if self._job else ""
        key = f"latents/{prefix}{shard_name(inputs.shard)}.parquet"
        varies = any(entry.is_fleeting for entry in loaded.bad)
        return Made(key, data, facts, varies=varies)

    def _moments(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Moments float16 [N, 2C, h, w].

        The last batch is filled up, since batch size decides the last bits.
        """
        size = self._config.batch_size
        parts: list[NDArray[np.float16]] = []
        with torch.inference_mode():
            for first in range(0, len(images), size):
                moments = self._encoded(self._vae, images[first : first + size])
                parts.append(moments.cpu().half().numpy())
                if not np.isfinite(parts[-1]).all():
                    raise UserError(
                        f"moments of the VAE in {self._config.vae}, computed in {self._config.precision}, "
                        "are beyond float16: take --precision bfloat16 or float32, or another --vae"
                    )
        side = self._plan.size // self._vae.downsample
        empty = np.zeros((0, 2 * self._vae.latent_channels, side, side), np.float16)
        return np.concatenate(parts) if parts else empty

    def _encoded(self, vae: Any, batch: NDArray[np.uint8]) -> torch.Tensor:
        """Moments float32 [B, 2C, h, w] of at most ``batch_size`` images."""
        missing = self._config.batch_size - len(batch)
        filled = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
        return vae.encode(to_float(torch.from_numpy(filled).to(self._device)))[: len(batch)]

    def _precision_error(self, images: NDArray[np.uint8]) -> PrecisionError:
        """Of the first batch."""
        batch = images[: self._config.batch_size]
        with torch.inference_mode():
            exact, found = (self._encoded(vae, batch).double().cpu() for vae in (self._exact, self._vae))
        difference = (found - exact).abs()
        return PrecisionError(
            images=len(batch),
            max=float(difference.max()),
            mean=float(difference.mean()),
            relative=float(difference.square().mean().sqrt() / exact.square().mean().sqrt()),
        )


def _finish(
    config: EncodeConfig, plan: AnyPlan, job: Job, sizes: list[int], vae: Any
) -> Manifest[LatentsResult]:
    markers = list(all_markers(job, len(sizes), LatentShardFacts))
    check_counts(job, markers, sizes)
    check_bad_shards(config.images, plan, job, markers)
    put_quarantine(job, bad_images(marker.facts for marker in markers), plan.classes)
    every = [*shards_before(job), *markers]
    duplicates, listed = find_duplicates(job.store, every)
    copies: dict[str, Any] = {} if duplicates is None else {"duplicates": duplicates}
    if listed:
        job.put_plain(duplicates_key(job.generation), listed)
    shards = [marker.facts for marker in every]
    side = config.images.size // vae.downsample
    train_rows, mean, std = statistics(shards, duplicates, side * side)
    return job.finish(
        LatentsResult(
            classes=plan.classes,
            image_size=config.images.size,
            latent_shape=(vae.latent_channels, side, side),
            rows=sum(shard.rows for shard in shards),
            train_rows=train_rows,
            bad=sum(len(shard.bad) for shard in shards),
            **conversions_of(shards),
            scaling_factor=float(vae.module.config.scaling_factor),
            mean=mean,
            std=std,
            **precision_error_of(shards),
            **copies,
        ),
        objects=markers,
    )
