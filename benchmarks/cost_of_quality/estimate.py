"""Means over seeds with Student's interval, and differences seed by seed; knows numbers only."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its 95 % interval; one seed has none."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Student's t interval; ValueError for no values, or more than the table of quantiles reaches to."""
        if not 0 < len(values) <= len(T_975) + 1:
            raise ValueError(f"an interval takes 1 to {len(T_975) + 1} values, got {len(values)}")
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, None)
        return cls(mean, T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values)))


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> tuple[Estimate, float, int] | None:
    """Difference of distances by seed over the seeds both have; the reference's mean there; how many."""
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    return (
        Estimate.of([ours[seed] - reference[seed] for seed in seeds]),
        statistics.fmean(reference[seed] for seed in seeds),
        len(seeds),
    )
