"""The step curve of a model, measured."""

import pytest

from ray_dit.serving.engine.profile import profile_steps
from tests.support.fakes import FakeModel


def test_measuring_finds_the_cost_of_a_row_and_ends_in_time():
    curve = profile_steps(FakeModel(a=0.01, b=0.001), max_rows=48, seconds=5)
    assert curve.rows == [1, 2, 4, 8, 16, 32, 48]
    assert curve.seconds(48) == pytest.approx(0.058, rel=0.3)
    slow = profile_steps(FakeModel(a=0.05), max_rows=128, seconds=0.3)
    assert slow.rows[-1] < 128
