"""`ray-dit generate`: labelled images by the number, in shards that `datasets.load_dataset` opens.

Picture i of a job has class classes[i mod K], noise of (seed, i), and lies in shard i // S. It is made in the
canonical batch it belongs to, always of the same size, so its bytes do not depend on who makes it or when.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ray_dit.config import GenerateConfig, SamplerConfig
from ray_dit.core.media import png
from ray_dit.core.settle import evaluations_per_image, settle_sampler
from ray_dit.errors import Damaged
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import CARD_KEY
from ray_dit.formats.registry import output_format
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import extended_objects, generation_prefix, last_generation, read_manifest
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.results import Manifest
from ray_dit.pipeline import dit_flops
from ray_dit.results import DatasetResult, ImageShardFacts, ModelResult, UsedSampler
from ray_dit.runtime.planning import Known, Plan, Trial, plan_shards, stored_bytes
from ray_dit.runtime.repairing import finish_shards, take_finished
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker
from ray_dit.runtime.shards import Work, all_markers, lanes_for, make_shards
from ray_dit.stages.extension import settings_begun, totals_of
from ray_dit.stages.fingerprint import open_job
from ray_dit.storage.open import open_store

STAGE = DatasetResult.stage_name
COUNTS = ("config.num_images", "config.per_class")
"""The parts in which an extension differs from what it extends."""
FORMAT = "parquet"
"""The format datasets are written in."""
PNG_BYTES_PER_PIXEL = 1.8
"""What photographs of 256 pixels take as PNG, about; only for plans without a trial."""


@dataclass(frozen=True)
class _Part:
    """What one generation adds to a dataset: the images [begin, end)."""

    generation: int
    begin: int
    end: int
    first_shard: int
    """How many shards the generations before have; numbers go on from there."""
    num_shards: int


@dataclass(frozen=True)
class DatasetPlan:
    """Which image is what: a function of the index.

    Images lie on a grid: cell c holds the images [cS, (c+1)S), in canonical batches from its first image on.
    A shard is a cell, or the part of it that one generation adds, so an extension that begins in the middle
    of a cell or batch has the very images of a dataset that was made in one go.
    """

    classes: tuple[int, ...]
    totals: tuple[int, ...]
    """Images there are at the end of each generation, rising."""
    shard_size: int
    generation: int = 0
    """The one to be made."""

    @property
    def num_images(self) -> int:
        """Those of all generations up to this one."""
        return self.totals[self.generation]

    @property
    def work(self) -> Work:
        """What this generation adds."""
        part = self._parts[self.generation]
        numbers = range(part.first_shard, part.first_shard + part.num_shards)
        sizes = [len(self.ids(shard)) for shard in numbers]
        return Work(STAGE, "images", sizes, first=part.first_shard, generation=part.generation)

    def of(self, generation: int) -> "DatasetPlan":
        """The plan of another generation of the same dataset."""
        return replace(self, generation=generation)

    def ids(self, shard: int) -> NDArray[np.int64]:
        """Image numbers of a shard, of whatever generation."""
        part, size = self._part(shard), self.shard_size
        cell = part.begin // size + shard - part.first_shard
        return np.arange(max(cell * size, part.begin), min((cell + 1) * size, part.end))

    def batches(self, shard: int, batch_size: int) -> list[NDArray[np.int64]]:
        """Image numbers of the canonical batches that hold a shard's images, each of full size.

        The first may begin with images of the generation before, the last ends with numbers that follow.
        """
        ids = self.ids(shard)
        first = ids[0] - ids[0] % self.shard_size % batch_size
        return [np.arange(begin, begin + batch_size) for begin in range(first, ids[-1] + 1, batch_size)]

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes of the images with these numbers: in turn, so that every shard is balanced."""
        return np.array(self.classes, dtype=np.int64)[ids % len(self.classes)]

    def name(self, shard: int) -> str:
        """Where a shard lies, without the suffix of its format.

        Readers sort names, so all numbers are as long as the last one, and of five digits at least.
        """
        part = self._part(shard)
        width = max(5, len(str(part.num_shards - 1)))
        place = shard - part.first_shard
        return f"{shards_of(part.generation)}{place:0{width}d}-of-{part.num_shards:05d}"

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        begin = shards = 0
        for generation, end in enumerate(self.totals):
            num_shards = -(-end // self.shard_size) - begin // self.shard_size
            parts.append(_Part(generation, begin, end, shards, num_shards))
            begin, shards = end, shards + num_shards
        return tuple(parts)

    def _part(self, shard: int) -> _Part:
        """The generation that has the shard."""
        return next(part for part in reversed(self._parts) if shard >= part.first_shard)


def shards_of(generation: int) -> str:
    """What the keys of a generation's shards begin with.

    Those of an extension do not begin like those of the dataset it extends: a card that lists these must not
    find the first shards of what is not finished.
    """
    return f"data/{generation_prefix(generation)}train-"


def generate(config: GenerateConfig) -> Manifest[DatasetResult]:
    """Makes the dataset, or the shards still missing; returns the manifest."""
    folder, plan, sampler = _settled(config)
    inputs = {"model": read_manifest(config.model, ModelResult).sha256}
    per_class = config.per_class
    for settings in settings_begun(open_store(config.output), "num_images") if config.extend else ():
        if settings["num_images"] == plan.num_images:  # it may have been asked for by the other of the counts
            per_class = settings["per_class"]
    resolved = {
        "sampler": sampler,
        "classes": list(plan.classes),
        "num_images": plan.num_images,
        "per_class": per_class,
    }
    job = open_job(config, STAGE, inputs, resolved=resolved, extend=config.extend, may_change=COUNTS)
    if job.generation != plan.generation:
        raise Damaged(
            f"{config.output} does not tell how many images the generations before have: restore its "
            "_job.json files from a copy"
        )
    build, gpus = _Build(config, plan, sampler), 1 if config.use_gpu else 0
    finished = plan.of(last_generation(job.store))
    plain: MadeAgain = {CARD_KEY: lambda: dataset_card(finished, folder.labels, sampler).encode()}
    manifest = take_finished(config, job, DatasetResult, build, gpus=gpus, plain=plain)
    if manifest is not None:
        return manifest

    def make() -> None:
        with ray_session(config) as ray:
            make_shards(ray, config, job, build, _work(plan, folder), gpus=gpus)

    return finish_shards(job, make, lambda: _finish(job, plan, folder, sampler))


def plan_generate(config: GenerateConfig, *, begun: float) -> Plan:
    """What the job will make and take; see ``runtime.planning``."""
    folder, plan, sampler = _settled(config)
    size, work = config.batch_size, _work(plan, folder)
    # the last batch of a shard is filled up, and so is the first where it belongs to the generation before
    rows = size * sum(len(plan.batches(shard, size)) for shard in work.numbers)
    evaluations = rows * evaluations_per_image(folder.config, sampler)
    side = folder.config.latents.image_size or 0
    images = sum(work.sizes)
    trial = DatasetPlan(plan.classes, (-(-images // size) * size,), shard_size=size)
    return plan_shards(
        config,
        work,
        Trial(_Build(config, trial, sampler), size, len(trial.work.sizes)),
        Known(
            network_evaluations=evaluations,
            bytes_in=stored_bytes(folder.store),
            flops=float(evaluations * dit_flops(folder.config.model)),
            bytes_out=images * side * side * PNG_BYTES_PER_PIXEL,
            precision=config.precision,
            left_out=f"a PNG takes {PNG_BYTES_PER_PIXEL} bytes per pixel, and the VAE is not counted",
        ),
        begun=begun,
        gpus=1 if config.use_gpu else 0,
    )


def _work(plan: DatasetPlan, folder: ModelFolder) -> Work:
    """What this generation adds, with as many shards under way as fit into memory."""
    side = folder.config.latents.image_size or 0
    shard_bytes = 3 * plan.shard_size * side**2
    return replace(plan.work, lanes=lanes_for(shard_bytes), shard_bytes=shard_bytes)


def _settled(config: GenerateConfig) -> tuple[ModelFolder, DatasetPlan, SamplerConfig]:
    """The model, which image is what, and how images are sampled.

    UserError where that does not fit together.
    """
    folder = read_model(config.model)
    plan = plan_dataset(config, folder.labels)
    sampler = settle_sampler(
        config.sampler, folder.config, where=config.model, scale_setting="--sampler.guidance-scale"
    )
    return folder, plan, sampler


def plan_dataset(config: GenerateConfig, labels: Labels) -> DatasetPlan:
    """Resolves class names and counts, and finds the generation that has so many images or will have them.

    UserError for an unknown class, with near matches, and where an extension would have fewer images.
    """
    if config.classes is not None:
        classes = tuple(dict.fromkeys(labels.resolve(name) for name in config.classes))
    else:
        classes = tuple(range(len(labels))) or (0,)
    num_images = config.num_images or (config.per_class or 1) * len(classes)
    totals = totals_of(config.output, "num_images", num_images, "images", extend=config.extend)
    return DatasetPlan(classes, totals, config.shard_size, totals.index(num_images))


@dataclass(frozen=True)
class _Build:
    """Makes the painter inside its actor."""

    config: GenerateConfig
    plan: DatasetPlan
    sampler: SamplerConfig

    def __call__(self) -> ShardMaker:
        return Painter(self.config, self.plan, self.sampler)


class Painter:
    """Makes image shards: samples latents and decodes them, then compresses the images."""

    def __init__(self, config: GenerateConfig, plan: DatasetPlan, sampler: SamplerConfig) -> None:
        from ray_dit.pipeline import load

        self._config, self._plan, self._sampler = config, plan, sampler
        self._pipeline = load(
            config.model,
            device="cuda" if config.use_gpu else "cpu",
            precision=config.precision,
            compile=config.compile,
        )

    def prepare(self, shard: int) -> int:
        """Nothing has to be read: an image is a function of its number."""
        return shard

    def compute(self, inputs: int) -> tuple[int, NDArray[np.uint8]]:
        """Images uint8 [N, H, W, 3] of the shard, canonical batch by canonical batch."""
        ids = self._plan.ids(inputs)
        batches = self._plan.batches(inputs, self._config.batch_size)
        before = ids[0] - batches[0][0]
        images = np.concatenate([self._batch(batch) for batch in batches])
        return inputs, images[before : before + len(ids)]

    def finish(self, outputs: tuple[int, NDArray[np.uint8]]) -> Made:
        """The shard in the dataset's format."""
        shard, images = outputs
        ids = self._plan.ids(shard)
        labels = self._plan.labels(ids)
        rows = ImageShard([png(image) for image in images], labels, ids, self._pipeline.labels.names)
        # one object per shard, since a marker is that of one object
        ((key, data),) = output_format(FORMAT).write(rows, self._plan.name(shard)).items()
        facts = ImageShardFacts(
            shard=shard,
            rows=len(ids),
            pixels_sha256=array_sha256(images),
            first_id=int(ids[0]),
            classes={str(label): int((labels == label).sum()) for label in np.unique(labels)},
        )
        return Made(key, data, facts)

    def _batch(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images uint8 [N, H, W, 3] of one canonical batch."""
        latents = self._pipeline.sample_latents(
            self._plan.labels(ids).tolist(),
            sample_ids=ids.tolist(),
            seed=self._config.seed,
            sampler=self._sampler,
        )
        return self._pipeline.decode(latents)


def _finish(
    job: Job, plan: DatasetPlan, folder: ModelFolder, sampler: SamplerConfig
) -> Manifest[DatasetResult]:
    labels, work = folder.labels, plan.work
    markers = list(all_markers(job, len(work.sizes), ImageShardFacts, first=work.first))
    pixels = hashlib.sha256()
    for marker in chain(extended_objects(job.store, job.generation, ImageShardFacts), markers):
        pixels.update(marker.facts.pixels_sha256.encode())
    job.put_plain(CARD_KEY, dataset_card(plan, labels, sampler).encode())
    return job.finish(
        DatasetResult(
            rows=plan.num_images,
            classes=labels.names,
            labels=plan.classes,
            image_size=folder.config.latents.image_size,
            sampler=UsedSampler.of(sampler),
            pixels_sha256=pixels.hexdigest(),
        ),
        objects=markers,
    )


def dataset_card(plan: DatasetPlan, labels: Labels, sampler: SamplerConfig) -> str:
    """README.md of the dataset: the YAML header `datasets` reads, and a few words."""
    names = "\n".join(f"          '{number}': {yaml_text(name)}" for number, name in enumerate(labels.names))
    shards = [f"{shards_of(generation)}*" for generation in range(plan.generation + 1)]
    paths = f" {shards[0]}" if len(shards) == 1 else "".join(f"\n    - {shard}" for shard in shards)
    opened = f'"parquet", data_files="{shards[0]}.parquet"' if len(shards) == 1 else '"."'
    label_type = f"\n      class_label:\n        names:\n{names}" if labels.names else " int64"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path:{paths}
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:{label_type}
  - name: id
    dtype: int64
  splits:
  - name: train
    num_examples: {plan.num_images}
task_categories:
- image-classification
tags:
- synthetic
size_categories:
- {size_category(plan.num_images)}
---
# {plan.num_images} generated pictures of {len(plan.classes)} classes

Made with ray-dit: {sampler.name}, {sampler.num_steps} steps, guidance {sampler.guidance_scale:g}; labels are
balanced. `manifest.json` lists every shard with its sha256; `ray-dit verify` checks them.

```python
from datasets import load_dataset

dataset = load_dataset({opened}, split="train")
```
"""


def size_category(num_images: int) -> str:
    """The hub's tag for a dataset's size."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    limits = [10**power for power in range(3, 10)]
    above = sum(num_images >= limit for limit in limits)
    if above == 0:
        return "n<1K"
    return f"{names[above - 1]}<n<{names[above]}" if above < len(names) else "n>1B"


def yaml_text(text: str) -> str:
    """A YAML string in double quotes."""
    import json

    return json.dumps(text, ensure_ascii=False)
