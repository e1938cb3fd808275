"""`ray-dit generate`: labelled images by the number, in shards that `datasets.load_dataset` opens.

Picture i of a job has class classes[i mod K], noise of (seed, i), and lies in shard i // S. It is made in the
canonical batch it belongs to, always of the same size, so its bytes do not depend on who makes it or when.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ray_dit.config import GenerateConfig, SamplerConfig
from ray_dit.core.media import png
from ray_dit.core.settle import evaluations_per_image, settle_sampler
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import CARD_KEY
from ray_dit.formats.registry import output_format
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import read_manifest
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.results import Manifest
from ray_dit.pipeline import dit_flops
from ray_dit.results import DatasetResult, ImageShardFacts, ModelResult, UsedSampler
from ray_dit.runtime.planning import Known, Plan, Trial, plan_shards, stored_bytes
from ray_dit.runtime.repairing import finish_shards, take_finished
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shards import (
    Made,
    ShardMaker,
    Work,
    all_markers,
    make_shards,
    shard_sizes,
)
from ray_dit.stages.fingerprint import open_job

STAGE = DatasetResult.stage_name
FORMAT = "parquet"
"""The format datasets are written in."""
PNG_BYTES_PER_PIXEL = 1.8
"""What photographs of 256 pixels take as PNG, about; only for plans without a trial."""


@dataclass(frozen=True)
class DatasetPlan:
    """Which image is what: a function of the index."""

    classes: tuple[int, ...]
    num_images: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    def ids(self, shard: int) -> NDArray[np.int64]:
        """Picture numbers of a shard."""
        first = shard * self.shard_size
        return np.arange(first, min(first + self.shard_size, self.num_images))

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes of the images with these numbers: in turn, so that every shard is balanced."""
        return np.array(self.classes, dtype=np.int64)[ids % len(self.classes)]

    def name(self, shard: int) -> str:
        """Where a shard lies, without the suffix of its format.

        Readers sort names, so all numbers are as long as the last one, and of five digits at least.
        """
        width = max(5, len(str(self.num_shards - 1)))
        return f"data/train-{shard:0{width}d}-of-{self.num_shards:05d}"


def generate(config: GenerateConfig) -> Manifest[DatasetResult]:
    """Makes the dataset, or the shards still missing; returns the manifest."""
    folder, plan, sampler = _settled(config)
    inputs = {"model": read_manifest(config.model, ModelResult).sha256}
    resolved = {"sampler": sampler, "classes": list(plan.classes), "num_images": plan.num_images}
    job = open_job(config, STAGE, inputs, resolved=resolved)
    build, gpus = _Build(config, plan, sampler), 1 if config.use_gpu else 0
    plain: MadeAgain = {CARD_KEY: lambda: dataset_card(plan, folder.labels, sampler).encode()}
    manifest = take_finished(config, job, DatasetResult, build, gpus=gpus, plain=plain)
    if manifest is not None:
        return manifest

    def make() -> None:
        with ray_session(config) as ray:
            sizes = shard_sizes(plan.num_images, plan.shard_size)
            make_shards(ray, config, job, build, Work(STAGE, "images", sizes), gpus=gpus)

    return finish_shards(job, make, lambda: _finish(job, plan, folder, sampler))


def plan_generate(config: GenerateConfig, *, begun: float) -> Plan:
    """What the job will make and take; see ``runtime.planning``."""
    folder, plan, sampler = _settled(config)
    size = config.batch_size
    sizes = shard_sizes(plan.num_images, plan.shard_size)
    rows = sum(-(-count // size) * size for count in sizes)  # the last batch of a shard is filled up
    evaluations = rows * evaluations_per_image(folder.config, sampler)
    side = folder.config.latents.image_size or 0
    trial = replace(plan, num_images=-(-plan.num_images // size) * size, shard_size=size)
    return plan_shards(
        config,
        Work(STAGE, "images", sizes),
        Trial(_Build(config, trial, sampler), size, trial.num_shards),
        Known(
            network_evaluations=evaluations,
            bytes_in=stored_bytes(folder.store),
            flops=float(evaluations * dit_flops(folder.config.model)),
            bytes_out=plan.num_images * side * side * PNG_BYTES_PER_PIXEL,
            precision=config.precision,
            left_out=f"a PNG takes {PNG_BYTES_PER_PIXEL} bytes per pixel, and the VAE is not counted",
        ),
        begun=begun,
        gpus=1 if config.use_gpu else 0,
    )


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
    """Resolves class names and counts; UserError for an unknown class, with near matches."""
    if config.classes is not None:
        classes = tuple(dict.fromkeys(labels.resolve(name) for name in config.classes))
    else:
        classes = tuple(range(len(labels))) or (0,)
    num_images = config.num_images or (config.per_class or 1) * len(classes)
    return DatasetPlan(classes, num_images, config.shard_size)


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
            config.model, device="cuda" if config.use_gpu else "cpu", precision=config.precision
        )

    def prepare(self, shard: int) -> int:
        """Nothing has to be read: an image is a function of its number."""
        return shard

    def compute(self, inputs: int) -> tuple[int, NDArray[np.uint8]]:
        """Images uint8 [N, H, W, 3] of the shard, canonical batch by canonical batch."""
        ids, size = self._plan.ids(inputs), self._config.batch_size
        return inputs, np.concatenate(
            [self._batch(ids[first : first + size]) for first in range(0, len(ids), size)]
        )

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
        """Images uint8 [N, H, W, 3] of one canonical batch, filled up with the numbers that would follow."""
        size = self._config.batch_size
        filled = np.concatenate([ids, np.arange(ids[-1] + 1, ids[-1] + 1 + size - len(ids))])
        latents = self._pipeline.sample_latents(
            self._plan.labels(filled).tolist(),
            sample_ids=filled.tolist(),
            seed=self._config.seed,
            sampler=self._sampler,
        )
        return self._pipeline.decode(latents)[: len(ids)]


def _finish(
    job: Job, plan: DatasetPlan, folder: ModelFolder, sampler: SamplerConfig
) -> Manifest[DatasetResult]:
    labels = folder.labels
    markers = list(all_markers(job, plan.num_shards, ImageShardFacts))
    pixels = hashlib.sha256("".join(marker.facts.pixels_sha256 for marker in markers).encode()).hexdigest()
    job.put_plain(CARD_KEY, dataset_card(plan, labels, sampler).encode())
    return job.finish(
        DatasetResult(
            rows=plan.num_images,
            classes=labels.names,
            labels=plan.classes,
            image_size=folder.config.latents.image_size,
            sampler=UsedSampler.of(sampler),
            pixels_sha256=pixels,
        ),
        objects=markers,
    )


def dataset_card(plan: DatasetPlan, labels: Labels, sampler: SamplerConfig) -> str:
    """README.md of the dataset: the YAML header `datasets` reads, and a few words."""
    names = "\n".join(f"          '{number}': {yaml_text(name)}" for number, name in enumerate(labels.names))
    label_type = f"\n      class_label:\n        names:\n{names}" if labels.names else " int64"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
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

dataset = load_dataset("parquet", data_files="data/train-*.parquet", split="train")
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
