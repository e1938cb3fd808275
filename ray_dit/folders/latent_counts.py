"""What the markers of latent shards say together: is each image accounted for, and are too many bad.

Knows no actors; a run counts while shards are made, and once more at its end.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ray_dit.config import ImagesConfig
from ray_dit.errors import Damaged, UserError
from ray_dit.folders.latent_plans import bad_images
from ray_dit.folders.plan_parts import AnyPlan
from ray_dit.folders.quarantine import SHOWN, check_bad
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import manifest_objects
from ray_dit.ledger.markers import in_order, unless_damaged
from ray_dit.ledger.results import Marker
from ray_dit.results import BadImage, Duplicates, LatentShardFacts, LatentsResult
from ray_dit.storage.store import ahead

Shards = Sequence[Marker[LatentShardFacts]]


class BadCount:
    """Counts the bad images of a job while its shards are made, and says when they are too many."""

    def __init__(self, plan: AnyPlan, max_bad: float, made: Shards = ()) -> None:
        """``made``: the shards that there are already."""
        self._total, self._where, self._max_bad = plan.count, plan.uri, max_bad
        self._bad = 0
        self._first: list[BadImage] = []
        for marker in made:
            self(marker.facts.to_json())

    def __call__(self, facts: Mapping[str, Any]) -> str | None:
        """Counts those of a shard with such facts; from when on it is certain that they are too many, why."""
        bad = LatentShardFacts.model_validate(facts).set_aside
        self._bad += len(bad)
        self._first += bad[: SHOWN - len(self._first)]
        try:
            check_bad(self._bad, self._total, self._max_bad, self._where, self._first, so_far=True)
        except UserError as error:
            return str(error)
        return None


def made_shards(job: Job) -> Iterator[Marker[LatentShardFacts]]:
    """The markers of this generation's shards that are there and whole."""

    def read(name: str) -> Marker[LatentShardFacts] | None:
        return unless_damaged(lambda: job.marker(name, LatentShardFacts))

    return (marker for marker in ahead(read, sorted(job.names(), key=in_order)) if marker is not None)


def check_counts(job: Job, markers: Shards, sizes: Sequence[int]) -> None:
    """Damaged where a shard's images and those set aside are not together the planned ones."""
    for marker, planned in zip(markers, sizes, strict=True):
        if not marker.facts.adds_up(planned):
            raise Damaged(
                f"{job.store.where(marker.key)} and its marker do not account for each of its {planned} "
                "images: delete the marker and run the same command again"
            )


def check_bad_shards(
    images: ImagesConfig, plan: AnyPlan, job: Job, markers: Shards, *, so_far: bool = False
) -> None:
    """UserError where too many of this generation's images are bad; ``so_far``: perhaps not all are known.

    Shards that lack images which may come back are then made again by the next run.
    """
    bad = bad_images(marker.facts for marker in markers)
    try:
        check_bad(len(bad), plan.count, images.max_bad, plan.uri, bad, so_far=so_far)
    except UserError:
        if not job.is_finished():
            lacking = [m for m in markers if any(entry.is_fleeting for entry in m.facts.set_aside)]
            job.forget(marker.name for marker in lacking if marker.name)
        raise


def shards_before(job: Job) -> list[Marker[LatentShardFacts]]:
    """The markers of the shards of the generations before."""
    if not job.generation:
        return []
    manifest = replace(job, generation=job.generation - 1).manifest(LatentsResult)
    assert manifest is not None, "only what is finished is extended"
    return list(manifest_objects(job.store, manifest, LatentShardFacts))


def statistics(
    shards: Sequence[LatentShardFacts], duplicates: Duplicates | None, positions: int
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """How many rows are to train on, and over these the mean and standard deviation of the raw latents.

    Both per channel; ``positions`` are those of a row, height times width.
    """
    twice = duplicates if duplicates is not None and duplicates.heldout else None
    rows = sum(shard.train_rows for shard in shards) - (twice.heldout if twice else 0)
    count = max(rows * positions, 1)
    mean = (np.sum([shard.sum for shard in shards], axis=0) - (twice.sum if twice else 0)) / count
    sums = np.sum([shard.sum_squares for shard in shards], axis=0)
    squares = (sums - (twice.sum_squares if twice else 0)) / count
    std = np.sqrt(np.maximum(squares - mean**2, 1e-12))
    return rows, tuple(mean.tolist()), tuple(std.tolist())
