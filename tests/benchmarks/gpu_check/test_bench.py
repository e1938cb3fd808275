"""What is reported, and how far two results lie apart."""

import math

import pytest
import torch

from benchmarks.gpu_check.bench import Report, deviation


@pytest.mark.parametrize(("value", "holds"), [(1e-6, True), (1e-4, False), (math.nan, False)])
def test_a_check_holds_up_to_its_bound(value: float, holds: bool):
    report = Report()
    report.check("something", value, 1e-5)
    assert report.checks[0]["holds"] is holds


def test_deviation_is_by_the_largest_magnitude():
    assert deviation(torch.tensor([1.0, -3.9]), torch.tensor([1.0, -4.0])) == pytest.approx(0.025)
