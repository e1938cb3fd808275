"""Which samples a worker's share of a step has: every position once, whatever the number of workers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_dit.runtime.training.data import AHEAD, StepBatches, step_positions
from tests.runtime.training.regression import run


def test_each_position_is_seen_once_and_in_order(tmp_path: Path) -> None:
    assert run(tmp_path).seen == list(range(8 * 4))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_shares_of_all_workers_make_up_the_step(world_size: int) -> None:
    shares = [step_positions(5, 6, rank, world_size) for rank in range(world_size)]
    assert {share.shape for share in shares} == {(6 // world_size,)}
    assert np.concatenate(shares).tolist() == list(range(5 * 6, 6 * 6))


@dataclass
class Listed:
    """A task whose samples are their positions; notes what is fetched and what is made."""

    fetched: list[list[int]] = field(default_factory=lambda: [])
    made: list[list[int]] = field(default_factory=lambda: [])

    def fetch(self, positions: NDArray[np.int64]) -> list[int]:
        self.fetched.append(positions.tolist())
        return positions.tolist()

    def batch(self, fetched: list[int]) -> list[int]:
        self.made.append(fetched)
        return fetched


def source(task: Any, **settings: Any) -> StepBatches[list[int]]:
    return StepBatches(task, 4, rank=1, world_size=2, **settings)


def test_samples_are_fetched_ahead_and_batches_made_when_asked_for() -> None:
    task = Listed()
    batches = source(task).batches(3, 9)
    assert task.fetched == []
    assert next(batches) == [[14, 15]]
    assert task.made == [[14, 15]]
    assert list(batches) == [[[4 * step + 2, 4 * step + 3]] for step in range(4, 9)]
    assert task.fetched == task.made == [[4 * step + 2, 4 * step + 3] for step in range(3, 9)]


def test_no_more_than_a_few_steps_are_fetched_ahead() -> None:
    task = Listed()
    batches = source(task).batches(0, 100)
    next(batches)
    batches.close()
    assert len(task.fetched) <= 1 + AHEAD


def test_a_step_may_have_several_batches() -> None:
    batches = StepBatches(Listed(), 8, parts=2).batches(1, 2)
    assert list(batches) == [[[8, 9, 10, 11], [12, 13, 14, 15]]]


def test_what_fetching_raises_reaches_the_loop_in_its_step() -> None:
    class Failing(Listed):
        def fetch(self, positions: NDArray[np.int64]) -> list[int]:
            if 8 in positions:
                raise ValueError("no such row")
            return super().fetch(positions)

    batches = StepBatches(Failing(), 4).batches(0, 9)
    assert [next(batches), next(batches)] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    with pytest.raises(ValueError, match="no such row"):
        next(batches)


def test_the_time_the_loop_waits_is_counted() -> None:
    times = iter([10.0, 12.5, 20.0, 20.5])
    counted = source(Listed(), clock=lambda: next(times))
    list(counted.batches(0, 2))
    assert counted.waited == 3.0
