"""The images an evaluation reads, and which of them each of its figures uses.

All of it is a function of the configuration. Real images come from the image folder, generated ones from the
dataset's shards. Knows no classifier and no metric.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ray_dit.config import EvaluateConfig
from ray_dit.core.media import UnreadableImage, decode
from ray_dit.core.order import order
from ray_dit.errors import UserError
from ray_dit.folders.dataset import read_shard
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.reading import load_images
from ray_dit.formats.class_matching import match_classes, unmatched
from ray_dit.formats.labels import Labels
from ray_dit.ledger.manifest import manifest_objects
from ray_dit.ledger.results import Manifest
from ray_dit.metrics import JUDGE, ON_GENERATED, ON_REAL
from ray_dit.results import DatasetResult, ImageShardFacts
from ray_dit.storage.open import open_store

REAL_PIECE = 1000
"""Real images per piece; generated ones come by the shard."""
SUBSET_EPOCH = 0

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 [N, S, S, 3] and their labels."""


@dataclass(frozen=True)
class GeneratedShard:
    """One shard of the dataset."""

    key: str
    sha256: str
    rows: int
    before: int
    """Images in the shards before it."""


@dataclass(frozen=True)
class EvaluationData:
    """Where the images are and which of them each figure uses, all of it a function of the configuration."""

    config: EvaluateConfig
    plan: ImagePlan
    dataset: Manifest[DatasetResult]
    piece_size: int = REAL_PIECE
    """Real images per piece."""

    @property
    def num_classes(self) -> int:
        return len(self.plan.classes)

    @property
    def num_generated(self) -> int:
        return self.dataset.facts.rows

    @cached_property
    def shards(self) -> list[GeneratedShard]:
        """The dataset's shards in their order."""
        listed: list[GeneratedShard] = []
        before = 0
        for marker in manifest_objects(open_store(self.config.dataset), self.dataset, ImageShardFacts):
            listed.append(GeneratedShard(marker.key, marker.sha256, marker.facts.rows, before))
            before += marker.facts.rows
        return listed

    @cached_property
    def real_pieces(self) -> list[NDArray[np.int64]]:
        """Rows of the plan, training ones first; a piece is all training or all held out."""
        return [
            rows[first : first + self.piece_size]
            for rows in (self.plan.rows(heldout=False), self.plan.rows(heldout=True))
            for first in range(0, len(rows), self.piece_size)
        ]

    @cached_property
    def piece_sizes(self) -> list[int]:
        """Images in each piece: the real ones, then the generated shards."""
        return [len(rows) for rows in self.real_pieces] + [shard.rows for shard in self.shards]

    @property
    def piece_kinds(self) -> list[str]:
        """What each piece is of: train, heldout or generated."""
        real = ["heldout" if self.plan.heldout[rows[0]] else "train" for rows in self.real_pieces]
        return real + ["generated"] * len(self.shards)

    @property
    def num_pieces(self) -> int:
        return len(self.piece_sizes)

    @property
    def num_cas(self) -> int:
        """Images the two classifiers of the accuracy score are trained on."""
        return min(self.num_generated, int((~self.plan.heldout).sum()))

    @property
    def num_compared(self) -> int:
        """Images each Fréchet distance is taken over: fewer give a larger one, so both take equally many."""
        return min(self.num_generated, int(self.plan.heldout.sum()))

    def subset(self, num_rows: int, count: int) -> NDArray[np.int64]:
        """``count`` of ``num_rows`` rows (or all, if fewer), rising: the first of the keyed order."""
        return np.sort(order(self.config.seed, SUBSET_EPOCH, np.arange(min(count, num_rows)), num_rows))

    def training_count(self, classifier: str) -> int:
        """Images a classifier is trained on; never more than its steps would look at."""
        steps = self.config.classifier.steps * self.config.classifier.batch_size
        return min(steps, int((~self.plan.heldout).sum()) if classifier == JUDGE else self.num_cas)

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Those to train: with enough generated images, as many real ones are all of them."""
        same = self.training_count(ON_REAL) == self.training_count(JUDGE)
        return (JUDGE, ON_GENERATED) if same else (JUDGE, ON_GENERATED, ON_REAL)

    def training_images(self, classifier: str) -> Labelled:
        """What a classifier is trained on."""
        count = self.training_count(classifier)
        if classifier == ON_GENERATED:
            return self.generated(self.subset(self.num_generated, count))
        rows = self.plan.rows(heldout=False)
        chosen = rows[self.subset(len(rows), count)]
        images, kept, _ = load_images(self.plan, chosen, all_there=True)
        return images, self.plan.labels[kept]

    def generated(self, wanted: NDArray[np.int64]) -> Labelled:
        """Generated images by their place in the dataset, rising; shard by shard, decoding only those."""
        images: list[NDArray[np.uint8]] = [np.zeros((0, self.plan.size, self.plan.size, 3), np.uint8)]
        labels: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        for number, shard in enumerate(self.shards):
            low, high = np.searchsorted(wanted, [shard.before, shard.before + shard.rows])
            if low < high:
                part = self.shard_images(number, wanted[low:high] - shard.before)
                images.append(part[0])
                labels.append(part[1])
        return np.concatenate(images), np.concatenate(labels)

    def shard_images(self, number: int, rows: NDArray[np.int64]) -> Labelled:
        """These rows of a generated shard; UserError where they do not fit the real images."""
        key = self.shards[number].key
        shard = read_shard(open_store(self.config.dataset), key, self.shards[number].sha256)
        where = f"{self.config.dataset}/{key}"
        images = [self._decoded(shard.images[row], where) for row in rows]
        return np.stack(images), shard.labels[rows]

    def _decoded(self, data: bytes, where: str) -> NDArray[np.uint8]:
        try:
            pixels = decode(data)
        except UnreadableImage as error:
            raise UserError(
                f"{where} holds a broken image ({error}): check it with `ray-dit verify`"
            ) from error
        size = self.plan.size
        if pixels.shape[:2] != (size, size):
            raise UserError(
                f"the images in {where} are {pixels.shape[1]}x{pixels.shape[0]}, the real ones are "
                f"compared at {size}x{size}: give --images.size {pixels.shape[0]}"
            )
        return pixels


def labels_of(dataset: Manifest[DatasetResult]) -> Labels:
    """The dataset's classes."""
    return Labels(dataset.facts.classes, dataset.facts.wordnet_ids)


def check(data: EvaluationData) -> None:
    """UserError for inputs that cannot be compared."""
    theirs, folders = labels_of(data.dataset), data.plan.classes
    if not len(theirs):
        raise UserError(
            f"{data.config.dataset} was made without classes, and evaluate judges by a classifier: measure "
            "it by `python -m jobs.fid` instead"
        )
    if match_classes(folders, theirs) != (*range(len(theirs)),):
        odd = unmatched(folders, theirs)
        raise UserError(
            f"{data.config.dataset} has {len(theirs)} classes and {data.plan.uri} has {len(folders)}"
            + (f", and {odd!r} is in only one of them" if odd is not None else "")
            + ": give the images the model was trained on as --images.uri"
        )
    if data.num_compared < 2:
        raise UserError(
            f"{int(data.plan.heldout.sum())} held-out and {data.num_generated} generated images are too "
            "few to compare: give the same --images.heldout as to encode, and generate at least 2"
        )
    data.shard_images(0, np.zeros(1, dtype=np.int64))  # says so if the images are of another size
