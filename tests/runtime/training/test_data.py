"""Which samples a worker's share of a step has: every position once, whatever the number of workers."""

from pathlib import Path

import numpy as np
import pytest

from ray_dit.runtime.training.data import StepBatches, step_positions
from tests.runtime.training.regression import run


def test_each_position_is_seen_once_and_in_order(tmp_path: Path) -> None:
    assert run(tmp_path).seen == list(range(8 * 4))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_shares_of_all_workers_make_up_the_step(world_size: int) -> None:
    shares = [step_positions(5, 6, rank, world_size) for rank in range(world_size)]
    assert {share.shape for share in shares} == {(6 // world_size,)}
    assert np.concatenate(shares).tolist() == list(range(5 * 6, 6 * 6))


def test_batches_are_made_when_they_are_asked_for() -> None:
    made: list[list[int]] = []
    batches = StepBatches(lambda at: made.append(at.tolist()), 4, rank=1, world_size=2).batches(3, 5)
    assert made == []
    next(batches)
    assert made == [[14, 15]]
    assert list(batches) == [None]
    assert made == [[14, 15], [18, 19]]
