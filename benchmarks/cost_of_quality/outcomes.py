"""What the measured cells say of each sampler, and which one should be the default."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cost_of_quality.cells import Measured
from benchmarks.cost_of_quality.estimate import Estimate, paired
from benchmarks.cost_of_quality.plan import Cell
from benchmarks.cost_of_quality.settings import Settings
from ray_dit.config import SamplerConfig


@dataclass(frozen=True)
class Outcome:
    """All seeds of one sampler."""

    sampler: SamplerConfig
    rows_per_image: float
    num_seeds: int
    distance: Estimate
    accuracy: float
    seconds_per_image: float
    difference: Estimate | None = None
    """To the same solver at the reference steps, over the seeds both have; None for the references
    themselves."""
    reference: float | None = None
    """Mean distance of the reference over those seeds."""
    num_pairs: int = 0
    """How many seeds those are."""

    def meets(self, loss: float) -> bool | None:
        """Whether the difference's interval includes 0 or stays below ``loss`` of the reference, if known."""
        if self.difference is None or self.difference.half is None or not self.reference:
            return None
        low, high = (self.difference.mean + sign * self.difference.half for sign in (-1, 1))
        return low <= 0 <= high or high < loss * self.reference


def outcomes(measured: Mapping[Cell, Measured], settings: Settings) -> list[Outcome]:
    """The samplers of which at least one seed has been measured, in the settings' order.

    The control is left out.
    """
    by_sampler: dict[SamplerConfig, dict[int, Measured]] = {}
    for cell, kept in measured.items():
        if cell.precision == settings.precision:
            by_sampler.setdefault(cell.sampler, {})[cell.seed] = kept
    distances = {
        sampler: {seed: kept.frechet_distance for seed, kept in seeds.items()}
        for sampler, seeds in by_sampler.items()
    }
    return [
        _outcome(sampler, list(by_sampler[sampler].values()), distances, settings)
        for sampler in settings.samplers()
        if sampler in by_sampler
    ]


def _outcome(
    sampler: SamplerConfig,
    kept: list[Measured],
    distances: Mapping[SamplerConfig, Mapping[int, float]],
    settings: Settings,
) -> Outcome:
    images = sum(one.images for one in kept)
    reference = settings.reference(sampler)
    compared = paired(distances[sampler], distances.get(reference, {})) if sampler != reference else None
    return Outcome(
        sampler=sampler,
        rows_per_image=sum(one.row_evaluations for one in kept) / images,
        num_seeds=len(kept),
        distance=Estimate.of(list(distances[sampler].values())),
        accuracy=statistics.fmean(one.accuracy for one in kept),
        seconds_per_image=sum(one.cpu_seconds for one in kept) / images,
        difference=compared[0] if compared else None,
        reference=compared[1] if compared else None,
        num_pairs=compared[2] if compared else 0,
    )


def choice(found: Sequence[Outcome], settings: Settings) -> Outcome | None:
    """What the default of generate should be.

    Of the samplers that meet the goal within its steps it is the one of least mean distance.

    Only samplers of which every seed has been measured, and of their reference, take part; equal ones are
    decided by row evaluations.
    """
    good = [
        one
        for one in found
        if one.num_pairs == len(settings.seeds)
        and one.sampler.num_inference_steps <= settings.goal_steps
        and one.meets(settings.goal_loss)
    ]
    return min(good, key=lambda one: (one.distance.mean, one.rows_per_image), default=None)
