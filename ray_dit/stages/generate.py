"""`ray-dit generate`: labelled images by the number, in shards of the format that is asked for.

Which image is what, and in which shard, is `dataset_plan.py`'s; how images are made, `painter.py`'s. An image
is made in the canonical batch it belongs to, always of the same size, so its bytes do not depend on who makes
it or when.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from ray_dit.config import GenerateConfig, SamplerConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.samplers import make_table
from ray_dit.core.settle import check_scales, evaluations_per_image, settle_sampler
from ray_dit.errors import Damaged, UserError
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.folders.requests import read_requests
from ray_dit.formats.dataset_card import dataset_card
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.image_format import WholeDataset, Written
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import CARD_KEY
from ray_dit.formats.registry import output_format
from ray_dit.ledger.description import known_description
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import (
    extended_objects,
    generation_prefix,
    last_generation,
    manifest_key,
    read_manifest,
)
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.restore import read_whole
from ray_dit.ledger.results import Manifest, Marker
from ray_dit.pipeline import dit_flops
from ray_dit.results import DatasetResult, ImageShardFacts, ModelResult, UsedSampler
from ray_dit.runtime.planning import Known, Plan, Trial, plan_shards, stored_bytes
from ray_dit.runtime.repairing import finish_shards, take_finished
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shards import Work, all_markers, lanes_for, make_shards
from ray_dit.stages.dataset_plan import STAGE, DatasetPlan
from ray_dit.stages.extension import settings_begun, totals_of
from ray_dit.stages.fingerprint import STAGE_RULES, open_job, rules_with_plan
from ray_dit.stages.painter import Build, rows_of
from ray_dit.stages.preview import check_preview, open_preview
from ray_dit.storage.open import open_output, open_store

COUNTS = ("config.num_images", "config.per_class")
"""The parts in which an extension differs from what it extends."""
PNG_BYTES_PER_PIXEL = 1.8
"""What photographs of 256 pixels take as PNG, about; only for plans without a trial."""
LARGEST_SHARD = 2 << 30
"""Bytes a shard may take: readers of Arrow count those of a column in 31 bits."""
HEAD_BYTES = 1024
"""That an image takes beside its pixels, at most."""
MOST_FILES = 10_000_000
"""Images of an image folder: the table of all is made in one piece."""


@dataclass(frozen=True)
class Settled:
    """What a configuration means for its model."""

    folder: ModelFolder
    plan: DatasetPlan
    inputs: Mapping[str, str]
    """Hashes of what is read."""

    @property
    def side(self) -> int:
        """Of the images, in pixels; 0 where the model does not tell."""
        return self.folder.config.latents.image_size or 0

    @property
    def sampler(self) -> SamplerConfig:
        """The job's own."""
        return self.plan.samplers[0]


def generate(config: GenerateConfig) -> Manifest[DatasetResult]:
    """Makes the dataset, or the shards still missing; returns the manifest."""
    check_preview(config)
    settled = settle(config)
    plan = settled.plan
    _check_sizes(config, settled)
    job = _open(config, settled)
    build, gpus = Build(config, plan), 1 if config.use_gpu else 0
    plain: dict[str, Callable[[], bytes]] = {}
    for generation in range(min(last_generation(job.store) + 1, len(plan.totals))):
        plain |= _at_the_end(config, settled, replace(job, generation=generation), plan.of(generation))
    manifest = take_finished(config, job, DatasetResult, build, gpus=gpus, plain=plain)
    if manifest is not None:
        return manifest

    preview = open_preview(config, job)

    def make() -> None:
        with ray_session(config) as ray, preview or nullcontext():
            make_shards(ray, config, job, build, replace(_work(settled), look_in=preview), gpus=gpus)

    return finish_shards(job, make, lambda: _finish(config, job, settled))


def _open(config: GenerateConfig, settled: Settled) -> Job:
    """The job in the output folder."""
    plan, per_class = settled.plan, config.per_class
    for settings in settings_begun(open_store(config.output), "num_images") if config.extend else ():
        if settings["num_images"] == plan.num_images:  # it may have been asked for by the other of the counts
            per_class = settings["per_class"]
    resolved = {
        "sampler": settled.sampler,
        "classes": list(plan.classes),
        "num_images": plan.num_images,
        "per_class": per_class,
    }
    job = open_job(
        config,
        STAGE,
        dict(settled.inputs),
        resolved=resolved,
        extend=config.extend,
        may_change=COUNTS,
        rules=plan.rules,
    )
    if job.generation != plan.generation:
        raise Damaged(
            f"{config.output} does not tell how many images the generations before have: restore its "
            "_job.json files from a copy"
        )
    return job


def plan_generate(config: GenerateConfig, *, begun: float) -> Plan:
    """What the job will make and take; see ``runtime.planning``."""
    if config.only is not None:
        raise UserError("--only makes a batch for each image, which needs no --plan: leave one of them out")
    settled = settle(config)
    _check_sizes(config, settled)
    folder, plan, size, work = settled.folder, settled.plan, config.batch_size, _work(settled)
    # the last batch of a shard is filled up, and so is the first where it belongs to the generation before
    rows = size * sum(plan.num_batches(shard, size) for shard in work.numbers)
    evaluations = round(rows * _evaluations_per_image(settled))
    images = sum(work.sizes)
    trial = replace(plan, totals=(-(-images // size) * size,), shard_size=size, generation=0)
    return plan_shards(
        config,
        work,
        Trial(Build(config, trial), size, len(trial.work.sizes)),
        Known(
            network_evaluations=evaluations,
            bytes_in=stored_bytes(folder.store),
            flops=float(evaluations * dit_flops(folder.config.model)),
            bytes_out=images * settled.side**2 * PNG_BYTES_PER_PIXEL,
            precision=config.precision,
            left_out=f"a PNG takes {PNG_BYTES_PER_PIXEL} bytes per pixel, and the VAE is not counted",
        ),
        begun=begun,
        gpus=1 if config.use_gpu else 0,
    )


def _evaluations_per_image(settled: Settled) -> float:
    """Rows the network sees for one image: the mean over those that differ in sampler and scale."""
    plan = settled.plan
    if plan.requests is not None:
        images = plan.images(np.arange(plan.num_images))
        kinds, counts = np.unique(np.stack((images.samplers, images.scales)), axis=1, return_counts=True)
        each = [(int(number), float(scale)) for number, scale in kinds.T]
    else:
        each = [(0, scale) for scale in plan.scales or (settled.sampler.guidance_scale,)]
        counts = np.ones(len(each))
    taken = [
        evaluations_per_image(
            settled.folder.config, plan.samplers[number].model_copy(update={"guidance_scale": scale})
        )
        for number, scale in each
    ]
    return float(np.average(taken, weights=counts))


def _work(settled: Settled) -> Work:
    """What this generation adds, with as many shards under way as fit into memory."""
    shard_bytes = 3 * settled.plan.shard_size * settled.side**2
    return replace(settled.plan.work, lanes=lanes_for(shard_bytes), shard_bytes=shard_bytes)


def settle(config: GenerateConfig) -> Settled:
    """The model, which image is what, and how images are sampled.

    UserError where that does not fit together.
    """
    folder = read_model(config.model)
    plan = plan_dataset(config, folder.labels)
    own = settle_sampler(
        config.sampler, folder.config, where=config.model, scale_setting="--sampler.guidance-scale"
    )
    check_scales(plan.scales, folder.config, where=config.model, setting="--guidance-scales")
    inputs = {"model": read_manifest(config.model, ModelResult).sha256}
    samplers = [own]
    if plan.requests is not None:
        inputs["requests"] = plan.requests.sha256
        asked = plan.requests.scales[~np.isnan(plan.requests.scales)].tolist()
        check_scales(asked, folder.config, where=config.model, setting=f"guidance_scale in {config.requests}")
        for name, steps in plan.requests.samplers[1:]:
            given = {"name": name, "num_inference_steps": steps}
            wanted = SamplerConfig.model_validate({key: value for key, value in given.items() if value})
            samplers.append(settle_sampler(wanted, folder.config, base=own, where=config.model))
    return Settled(folder, replace(plan, samplers=tuple(samplers)), inputs)


def plan_dataset(config: GenerateConfig, labels: Labels) -> DatasetPlan:
    """Resolves class names and counts, and finds the generation that has so many images or will have them.

    UserError for an unknown class, with near matches, and where an extension would have fewer images. The
    sampler is not looked at.
    """
    requests = None if config.requests is None else read_requests(config.requests, labels)
    if config.classes is not None:
        classes = tuple(dict.fromkeys(labels.resolve(name) for name in config.classes))
    elif requests is not None:
        classes = tuple(np.unique(requests.labels).tolist())
    else:
        classes = tuple(range(len(labels))) or (0,)
    num_images = config.num_images or (config.per_class or 1) * len(classes)
    num_images = num_images if requests is None else len(requests.labels)
    totals = totals_of(config.output, "num_images", num_images, "images", extend=config.extend)
    return DatasetPlan(
        classes,
        totals,
        config.shard_size,
        totals.index(num_images),
        rules=_rules(config.output),
        seed=config.seed,
        is_random=config.labels == "random",
        scales=config.guidance_scales or (),
        requests=requests,
    )


def _rules(output: str) -> int:
    """The number of the rules that the dataset in ``output`` goes on under, or will begin under."""
    there = known_description(open_output(output), 0) or {}
    begun = there.get("parts", {}).get("rules", 1) if there else None
    return rules_with_plan(STAGE, begun) or len(STAGE_RULES[STAGE])


def _check_sizes(config: GenerateConfig, settled: Settled) -> None:
    """UserError for a shard that readers could not take, before anything is made or written."""
    plan = settled.plan
    if open_output(config.output).head(manifest_key(plan.generation)) is not None:
        return  # made already
    image_bytes = 3 * settled.side**2 + HEAD_BYTES
    fits = LARGEST_SHARD // image_bytes
    if min(plan.shard_size, plan.num_images) > fits:
        raise UserError(
            f"a shard of {plan.shard_size:,} images of {settled.side}x{settled.side} pixels may take "
            f"{plan.shard_size * image_bytes / 1e9:.1f} GB, and 2.1 GB is what readers take: give "
            f"--shard-size {fits} or less"
        )
    if config.format == "folder" and plan.num_images > MOST_FILES:
        raise UserError(
            f"an image folder of {plan.num_images:,} files is more than file systems and readers bear "
            f"({MOST_FILES:,}): take --format parquet or webdataset"
        )


def _finish(config: GenerateConfig, job: Job, settled: Settled) -> Manifest[DatasetResult]:
    plan, labels = settled.plan, settled.folder.labels
    pixels = hashlib.sha256()

    def hashed(markers: Iterator[Marker[ImageShardFacts]]) -> Iterator[Marker[ImageShardFacts]]:
        for marker in markers:
            pixels.update(marker.facts.pixels_sha256.encode())
            yield marker

    def result() -> DatasetResult:
        return DatasetResult(
            rows=plan.num_images,
            classes=labels.names,
            labels=plan.classes,
            image_size=settled.folder.config.latents.image_size,
            sampler=UsedSampler.of(settled.sampler),
            pixels_sha256=pixels.hexdigest(),
            **(_more_facts(config, settled) if plan.rules > 1 else {}),
        )

    for key, made in _at_the_end(config, settled, job, plan).items():
        job.put_plain(key, made())
    for _ in hashed(extended_objects(job.store, job.generation, ImageShardFacts)):
        pass
    return job.finish(result, objects=hashed(_markers(job, plan)))


def _more_facts(config: GenerateConfig, settled: Settled) -> dict[str, Any]:
    """What datasets of the first layout did not tell."""
    plan, ids, model = settled.plan, settled.folder.labels.known_ids, settled.folder.config
    schedule = linear_schedule(model.diffusion)
    tables = [make_table(each, schedule, learn_sigma=model.model.learn_sigma) for each in plan.samplers]
    return {
        "stored_as": config.format,
        "label_rule": "requests" if plan.requests is not None else config.labels,
        "sampler_tables_sha256": tuple(
            array_sha256(table.matrix().astype(np.float32))  # as they are used
            for table in tables
        ),
        **({"wordnet_ids": ids} if ids else {}),
        **({"guidance_scales": plan.scales} if plan.scales else {}),
    }


def _markers(job: Job, plan: DatasetPlan) -> Iterator[Marker[ImageShardFacts]]:
    """Those of the shards of the job's generation."""
    numbers = plan.own_numbers
    return all_markers(job, len(numbers), ImageShardFacts, first=numbers.start)


def _at_the_end(config: GenerateConfig, settled: Settled, job: Job, plan: DatasetPlan) -> MadeAgain:
    """What is written once all shards of a generation are there: the card, and what the format adds."""
    labels, output = settled.folder.labels, output_format(config.format)
    whole = WholeDataset(
        num_images=plan.num_images,
        image_size=settled.side,
        shards=lambda: (
            Written(marker.key, marker.facts.rows, marker.bytes, marker.sha256)
            for marker in chain(
                extended_objects(job.store, job.generation, ImageShardFacts), _markers(job, plan)
            )
        ),
        rows=lambda: (rows_of(config, plan, labels, shard) for shard in plan.numbers),
        get=lambda shard: read_whole(job.store, shard.key, shard.sha256),
    )
    return {CARD_KEY: lambda: _card(config, settled, plan).encode(), **output.whole(whole)}


def _card(config: GenerateConfig, settled: Settled, plan: DatasetPlan) -> str:
    """README.md of the dataset."""
    labels = settled.folder.labels
    shown = rows_of(config, plan, labels, 0)
    classes = f" of {len(plan.classes)} classes" if labels.names or plan.rules == 1 else ""
    prefixes = [generation_prefix(generation) for generation in range(plan.generation + 1)]
    return dataset_card(
        output_format(config.format).card(shown),
        title=f"{plan.num_images} generated {'pictures' if plan.rules == 1 else 'images'}{classes}",
        words=_words(settled.sampler, plan, labelled=bool(classes)),
        num_images=plan.num_images,
        prefixes=prefixes,
        labelled=bool(classes),
    )


def _words(sampler: SamplerConfig, plan: DatasetPlan, *, labelled: bool) -> str:
    """How the images were made, for people."""
    scale = f"{sampler.guidance_scale:g}"
    if plan.scales:
        scale = "drawn from " + ", ".join(f"{each:g}" for each in plan.scales)
    rule = "balanced"
    if plan.is_random:
        rule = f"drawn at random by seed {plan.seed} and each image's number"
    if plan.requests is not None:
        rule = "those of a list of requests, which may ask for other settings too"
    told = f"; labels are\n{rule}" if labelled else ""
    return (
        f"Made with ray-dit: {sampler.name}, {sampler.num_steps} steps, guidance {scale}{told}. "
        "`manifest.json` lists every shard with its sha256; `ray-dit verify` checks them."
    )
