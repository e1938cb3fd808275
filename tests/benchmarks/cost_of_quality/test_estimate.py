"""Student's intervals, and differences seed by seed."""

import numpy as np
import pytest
import torch

from benchmarks.cost_of_quality.estimate import T_975, Estimate, paired


def test_the_interval_is_students() -> None:
    # Mean 4, standard deviation 2, standard error 2/√5; t(4) at 97.5 % is 2.776.
    estimate = Estimate.of([2.0, 3.0, 3.0, 5.0, 7.0])
    assert estimate.mean == pytest.approx(4.0)
    assert estimate.half == pytest.approx(2.776 * 2.0 / 5**0.5)
    assert Estimate.of([1.0, 3.0]).half == pytest.approx(12.706)
    assert Estimate.of([5.0]) == Estimate(5.0, None)


@pytest.mark.parametrize("count", [0, len(T_975) + 2])
def test_an_interval_the_table_does_not_reach_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"got {count}"):
        Estimate.of([1.0] * count)


def test_the_quantiles_are_those_of_students_t() -> None:
    """By the density's integral from 0 to the quantile, which is 0.475."""
    for degrees, quantile in enumerate(T_975, start=1):
        x = np.linspace(0, quantile, 20001)
        log_scale = torch.lgamma(torch.tensor([(degrees + 1) / 2, degrees / 2], dtype=torch.float64)).numpy()
        density = np.exp(log_scale[0] - log_scale[1]) / np.sqrt(degrees * np.pi)
        density = density * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
        assert np.trapezoid(density, x) == pytest.approx(0.475, abs=1e-4)


def test_differences_are_taken_by_seed_over_the_seeds_both_have() -> None:
    # The distances of a seed differ much from another seed's, their difference hardly: pairing sees that.
    compared = paired({0: 10.5, 1: 20.7, 5: 99.0}, {1: 20.0, 0: 10.0, 3: -1.0})
    assert compared is not None
    difference, reference, count = compared
    assert count == 2
    assert difference.mean == pytest.approx(0.6)
    assert difference.half == pytest.approx(12.706 * 0.1)
    assert reference == pytest.approx(15.0)
    assert paired({0: 1.0}, {1: 1.0}) is None
