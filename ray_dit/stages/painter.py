"""What makes image shards: samples latents, decodes them and stores the images in the dataset's format.

Knows which image is what from its plan, and neither Ray nor the job.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ray_dit.config import GenerateConfig
from ray_dit.core.media import Encoding, encode
from ray_dit.formats.deterministic import array_sha256
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.labels import Labels
from ray_dit.formats.registry import output_format
from ray_dit.results import ImageShardFacts
from ray_dit.runtime.shard_maker import Made, ShardMaker
from ray_dit.stages.dataset_plan import DatasetPlan

VAE_COMPILED_SINCE = 3
"""Rules of `generate` since which `--compile` compiles the VAE's decoder too."""


@dataclass(frozen=True)
class Build:
    """Makes the painter inside its actor."""

    config: GenerateConfig
    plan: DatasetPlan

    def __call__(self) -> ShardMaker:
        return Painter(self.config, self.plan)


class Painter:
    """Makes image shards: samples latents and decodes them, then compresses the images."""

    def __init__(self, config: GenerateConfig, plan: DatasetPlan) -> None:
        from ray_dit.pipeline import load

        self._config, self._plan = config, plan
        self._pipeline = load(
            config.model,
            device="cuda" if config.use_gpu else "cpu",
            precision=config.precision,
            compile=config.compile,
            vae_precision=config.vae_precision,
            compile_vae=config.compile and plan.rules >= VAE_COMPILED_SINCE,
        )

    def prepare(self, shard: int) -> int:
        """Nothing has to be read: an image is a function of its number."""
        return shard

    def compute(self, inputs: int) -> tuple[int, NDArray[np.uint8]]:
        """Images uint8 [N, H, W, 3] of the shard, canonical batch by canonical batch."""
        ids = self._plan.ids(inputs)
        batches = self._plan.batches(inputs, self._config.batch_size)
        before = ids[0] - batches[0][0]
        images = np.concatenate([self.batch(batch) for batch in batches])
        return inputs, images[before : before + len(ids)]

    def finish(self, outputs: tuple[int, NDArray[np.uint8]]) -> Made:
        """The shard in the dataset's format."""
        shard, images = outputs
        rows = rows_of(self._config, self._plan, self._pipeline.labels, shard)
        encoded = [encoded_image(self._config, image) for image in images]
        written = output_format(self._config.format).write(
            replace(rows, images=encoded), self._plan.name(shard)
        )
        key = next(iter(written))  # of the object that stands for the shard, as its marker does
        counts = np.unique(rows.labels, return_counts=True)
        facts = ImageShardFacts(
            shard=shard,
            rows=len(rows.ids),
            pixels_sha256=array_sha256(images),
            first_id=int(rows.ids[0]),
            classes={str(label): int(count) for label, count in zip(*counts, strict=True)},
        )
        return Made(key, written.pop(key), facts, files=written)

    def batch(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images uint8 [N, H, W, 3] of one canonical batch."""
        plan = self._plan
        images = plan.images(ids)
        latents = self._pipeline.sample_latents(
            images.labels.tolist(),
            sample_ids=images.sample_ids.tolist(),
            seed=images.seeds.tolist(),
            sampler=[
                plan.samplers[number].model_copy(update={"guidance_scale": scale})
                for number, scale in zip(images.samplers.tolist(), images.scales.tolist(), strict=True)
            ],
        )
        return self._pipeline.decode(latents)


def encoding_of(config: GenerateConfig) -> Encoding:
    """How images are stored: as asked for, where the format leaves a choice."""
    encodings: Sequence[Encoding] = output_format(config.format).encodings
    return config.image_format if config.image_format in encodings else encodings[0]


def encoded_image(config: GenerateConfig, image: NDArray[np.uint8]) -> bytes:
    """The file of an image, as it is in the dataset."""
    return encode(image, encoding_of(config), png_level=config.png_level, quality=config.quality)


def rows_of(config: GenerateConfig, plan: DatasetPlan, labels: Labels, shard: int) -> ImageShard:
    """A shard without its images: what follows from the plan alone."""
    ids = plan.ids(shard)
    return ImageShard(
        (),
        plan.labels(ids),
        ids,
        labels.unique_names if plan.rules > 1 else labels.names,
        labels.known_ids,
        settings=plan.settings(ids),
        encoding=encoding_of(config),
        prefix=plan.prefix(shard),
        layout=min(plan.rules, 2),
    )
