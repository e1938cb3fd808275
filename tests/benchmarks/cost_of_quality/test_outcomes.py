"""The figures of a sampler, the goal, and the choice."""

from typing import Any

import pytest

from benchmarks.cost_of_quality.estimate import Estimate
from benchmarks.cost_of_quality.outcomes import Outcome, choice, outcomes
from ray_dit.config import SamplerConfig
from tests.benchmarks.cost_of_quality.examples import settings, some_cells


def outcome(mean: float, half: float | None, **fields: Any) -> Outcome:
    """One of 10 steps, all seeds measured, whose reference lies at 10."""
    given = {
        "sampler": SamplerConfig(num_inference_steps=10),
        "rows_per_image": 20.0,
        "num_seeds": 5,
        "distance": Estimate(10.0 + mean, half),
        "accuracy": 1.0,
        "seconds_per_image": 0.1,
        "difference": Estimate(mean, half),
        "reference": 10.0,
        "num_pairs": 5,
    }
    return Outcome(**given | fields)


@pytest.mark.parametrize(
    ("mean", "half", "meets"),
    [
        (0.3, 0.1, True),  # worse, by less than 5 %
        (0.45, 0.1, False),  # may be worse by more than 5 %
        (0.45, 0.5, True),  # includes 0
        (-2.0, 0.1, True),  # better
        (0.1, None, None),  # one seed
    ],
)
def test_the_goal(mean: float, half: float | None, meets: bool | None) -> None:
    assert outcome(mean, half).meets(0.05) is meets


def test_the_choice_is_the_least_distance_that_meets_the_goal() -> None:
    ours = settings()
    best = outcome(0.2, 0.1, rows_per_image=14.0)
    others = [
        outcome(0.3, 0.1),
        outcome(0.2, 0.1),  # as good for more rows
        outcome(0.9, 0.1, distance=Estimate(1.0, 0.1)),  # less, but far from its reference
        outcome(-1.0, 0.1, num_pairs=4),
        outcome(-1.0, 0.1, sampler=SamplerConfig(num_inference_steps=15)),
    ]
    assert choice([*others, best], ours) is best
    assert choice(others[2:], ours) is None


def test_outcomes_gather_the_seeds_of_a_sampler() -> None:
    ours, cells = some_cells()
    ten, reference, ancestral = outcomes(cells, ours)
    assert ten.distance.mean == pytest.approx((4 + 9) / 2)
    assert ten.difference is not None
    assert ten.difference.mean == pytest.approx((3 + 2.75) / 2)
    assert ten.difference.half == pytest.approx(12.706 * 0.125)
    assert ten.reference == pytest.approx((1 + 6.25) / 2)
    assert (ten.accuracy, ten.rows_per_image, ten.seconds_per_image) == (0.75, 20.0, 1.0)
    assert (reference.difference, ancestral.difference) == (None, None)
    assert (reference.num_seeds, ancestral.num_seeds, ancestral.distance.half) == (2, 1, None)
