"""Which image of a dataset is what: a function of its number, and of what was asked for.

Knows no model, no network and no storage of images.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_dit.config import SamplerConfig
from ray_dit.core.rng import Stream, integers
from ray_dit.folders.requests import ImageRequests
from ray_dit.ledger.manifest import generation_prefix
from ray_dit.results import DatasetResult
from ray_dit.runtime.shards import Work

STAGE = DatasetResult.stage_name


@dataclass(frozen=True)
class Images:
    """What images are made of, a value per image."""

    labels: NDArray[np.int64]
    seeds: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    """Those of their noise: an image that asks for a seed of its own is that seed's first, as anywhere."""
    scales: NDArray[np.float64]
    samplers: NDArray[np.int64]
    """Their numbers in the plan."""


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
    rules: int = 3
    """The number of those of `generate` that the dataset was begun under."""
    seed: int = 0
    is_random: bool = False
    """Whether classes are drawn; else they come in turn."""
    scales: tuple[float, ...] = ()
    """Guidance scales to draw from; none where all images have their sampler's."""
    samplers: tuple[SamplerConfig, ...] = (SamplerConfig(),)
    """In full; that of the images that ask for none is the first."""
    requests: ImageRequests | None = None
    """What each image is, where that was listed."""

    @property
    def num_images(self) -> int:
        """Those of all generations up to this one."""
        return self.totals[self.generation]

    @property
    def work(self) -> Work:
        """What this generation adds."""
        sizes = [len(self._span(shard)) for shard in self.own_numbers]
        return Work(STAGE, "images", sizes, first=self.own_numbers.start, generation=self.generation)

    def of(self, generation: int) -> "DatasetPlan":
        """The plan of another generation of the same dataset."""
        return replace(self, generation=generation)

    def ids(self, shard: int) -> NDArray[np.int64]:
        """Image numbers of a shard, of whatever generation."""
        span = self._span(shard)
        return np.arange(span.start, span.stop)

    def batches(self, shard: int, batch_size: int) -> list[NDArray[np.int64]]:
        """Image numbers of the canonical batches that hold a shard's images, each of full size.

        The first may begin with images of the generation before, the last ends with numbers that follow.
        """
        return [np.arange(begin, begin + batch_size) for begin in self._batch_begins(shard, batch_size)]

    def num_batches(self, shard: int, batch_size: int) -> int:
        """How many canonical batches hold a shard's images."""
        return len(self._batch_begins(shard, batch_size))

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes of the images with these numbers.

        As requested, drawn, or in turn, so that every shard is balanced.
        """
        if self.requests is not None:
            return self.requests.labels[ids % len(self.requests.labels)]
        classes = np.array(self.classes, dtype=np.int64)
        return classes[
            self._drawn(ids, len(classes), Stream.DATASET_LABELS) if self.is_random else ids % len(classes)
        ]

    def images(self, ids: NDArray[np.int64]) -> "Images":
        """All that the images with these numbers are made of."""
        count = len(ids)
        seeds, sample_ids = np.full(count, self.seed), ids
        scales = np.full(count, self.samplers[0].guidance_scale)
        numbers = np.zeros(count, np.int64)
        if self.scales:
            scales = np.array(self.scales)[self._drawn(ids, len(self.scales), Stream.DATASET_SCALES)]
        if self.requests is not None:
            asked = self.requests.take(ids % len(self.requests.labels))
            seeds = np.where(asked.seeds < 0, seeds, asked.seeds)
            sample_ids = np.where(asked.seeds < 0, ids, 0)
            numbers = asked.sampler
            own = np.array([sampler.guidance_scale for sampler in self.samplers])[numbers]
            scales = np.where(np.isnan(asked.scales), own, asked.scales)
        return Images(self.labels(ids), seeds, sample_ids, scales, numbers)

    def settings(self, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The settings that vary in the whole dataset, for the images with these numbers."""
        images = self.images(ids)
        steps = np.array([sampler.num_steps for sampler in self.samplers])[images.samplers]
        names = np.array([sampler.name for sampler in self.samplers])[images.samplers]
        columns = {
            "seed": images.seeds,
            "guidance_scale": images.scales,
            "num_inference_steps": steps,
            "sampler": names,
        }
        return {name: column for name, column in columns.items() if name in self._varying}

    @cached_property
    def _varying(self) -> frozenset[str]:
        """Names of the settings that are not the same for all images."""
        if self.requests is None:
            return frozenset({"guidance_scale"} if len({*self.scales}) > 1 else ())
        asked = self.images(np.arange(len(self.requests.labels)))
        used = [self.samplers[number] for number in np.unique(asked.samplers)]
        different = {
            "seed": len(np.unique(asked.seeds)),
            "guidance_scale": len(np.unique(asked.scales)),
            "num_inference_steps": len({sampler.num_steps for sampler in used}),
            "sampler": len({sampler.name for sampler in used}),
        }
        return frozenset(name for name, count in different.items() if count > 1)

    def _drawn(self, ids: NDArray[np.int64], count: int, stream: Stream) -> NDArray[np.int64]:
        """A number below ``count`` for each image, by the seed and its own."""
        return integers(self.seed, torch.from_numpy(ids), 0, count, stream=stream).numpy()

    def name(self, shard: int) -> str:
        """Where a shard lies, without the suffix of its format.

        Readers sort names, so all numbers are as long as the last one, and of five digits at least.
        """
        part = self._part(shard)
        width = max(5, len(str(part.num_shards - 1)))
        place = shard - part.first_shard
        return f"{shards_of(part.generation)}{place:0{width}d}-of-{part.num_shards:05d}"

    def prefix(self, shard: int) -> str:
        """What tells the names of a shard's files from those of other generations."""
        return generation_prefix(self._part(shard).generation)

    @property
    def numbers(self) -> range:
        """Those of the shards of all generations up to this one."""
        part = self._parts[self.generation]
        return range(part.first_shard + part.num_shards)

    @property
    def own_numbers(self) -> range:
        """Those of the shards that this generation adds."""
        part = self._parts[self.generation]
        return range(part.first_shard, part.first_shard + part.num_shards)

    def batch_of(self, number: int, batch_size: int) -> NDArray[np.int64]:
        """Numbers of the images of the canonical batch that an image is made in."""
        cell = number - number % self.shard_size
        first = cell + (number - cell) // batch_size * batch_size
        return np.arange(first, first + batch_size)

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        begin = shards = 0
        for generation, end in enumerate(self.totals):
            num_shards = -(-end // self.shard_size) - begin // self.shard_size
            parts.append(_Part(generation, begin, end, shards, num_shards))
            begin, shards = end, shards + num_shards
        return tuple(parts)

    def _span(self, shard: int) -> range:
        """Image numbers of a shard; a range takes no memory, however many they are."""
        part, size = self._part(shard), self.shard_size
        cell = part.begin // size + shard - part.first_shard
        return range(max(cell * size, part.begin), min((cell + 1) * size, part.end))

    def _batch_begins(self, shard: int, batch_size: int) -> range:
        """First image of each canonical batch that holds a shard's images."""
        span = self._span(shard)
        return range(span.start - span.start % self.shard_size % batch_size, span.stop, batch_size)

    def _part(self, shard: int) -> _Part:
        """The generation that has the shard."""
        return next(part for part in reversed(self._parts) if shard >= part.first_shard)


def shards_of(generation: int) -> str:
    """What the keys of a generation's shards begin with.

    Those of an extension do not begin like those of the dataset it extends: a card that lists these must not
    find the first shards of what is not finished.
    """
    return f"data/{generation_prefix(generation)}train-"
