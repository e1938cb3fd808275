"""Sizes of steps from measured times."""

import pytest

from ray_dit.serving.profile import StepCurve, profile_steps
from tests.support.fakes import FakeModel


def test_a_device_with_constant_cost_takes_large_steps_and_a_linear_one_small_ones():
    constant = StepCurve([1, 2, 4, 8, 16], [1.0, 1.0, 1.0, 1.01, 1.02])
    linear = StepCurve([1, 2, 4, 8, 16], [1.0, 2.0, 4.0, 8.0, 16.0])
    assert constant.best_rows() == 16
    assert linear.best_rows() == 2


def test_times_between_and_beyond_the_points():
    curve = StepCurve([2, 4], [1.0, 3.0])
    assert [curve.seconds(rows) for rows in (1, 2, 3, 4, 8)] == [1.0, 1.0, 2.0, 3.0, 6.0]
    assert [curve.rows_within(seconds) for seconds in (0.5, 2.0, 2.9, 100)] == [1, 3, 3, 4]


def test_a_point_that_came_out_faster_than_a_smaller_one_is_noise():
    assert StepCurve([1, 2], [2.0, 1.0]).seconds(2) == 2.0


def test_curves_need_rising_rows():
    with pytest.raises(ValueError, match="rising"):
        StepCurve([2, 1], [1.0, 1.0])


def test_measuring_finds_the_cost_of_a_row_and_ends_in_time():
    curve = profile_steps(FakeModel(a=0.01, b=0.001), max_rows=48, seconds=5)
    assert curve.rows == [1, 2, 4, 8, 16, 32, 48]
    assert curve.seconds(48) == pytest.approx(0.058, rel=0.3)
    slow = profile_steps(FakeModel(a=0.05), max_rows=128, seconds=0.3)
    assert slow.rows[-1] < 128
