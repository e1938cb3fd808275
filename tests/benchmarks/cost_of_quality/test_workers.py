"""How one cell is measured, and how many are, so many at a time."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from benchmarks.cost_of_quality.cells import Measured
from benchmarks.cost_of_quality.plan import Cell, Task
from benchmarks.cost_of_quality.workers import measure, run
from ray_dit.config import SamplerConfig
from ray_dit.core.metrics import FeatureStatistics, frechet_distance
from tests.benchmarks.cost_of_quality.examples import kept, settings, some_cells


def painted(seed: int, labels: Sequence[int], ids: Sequence[int]) -> np.ndarray:
    """Pictures that tell their seed, label and id."""
    return np.array([[[[seed, label, i]]] for label, i in zip(labels, ids, strict=True)], dtype=np.uint8)


def test_a_cell_is_balanced_and_numbers_its_samples_whatever_the_batches() -> None:
    seen: list[np.ndarray] = []

    def paint(labels: list[int], ids: range, cell: Cell) -> np.ndarray:
        assert len(ids) <= 4
        return painted(cell.seed, labels, ids)

    def judge(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(images[:, 0, 0])
        # Reads label 1 as 2, all others right.
        answers = torch.from_numpy(images[:, 0, 0, 1].astype(np.int64))
        answers[answers == 1] = 2
        return torch.nn.functional.one_hot(answers, 3).float(), torch.from_numpy(images[:, 0, 0, 1:]).float()

    task = Task(Cell(SamplerConfig(), 7, "float32"), "key", 90)
    train = FeatureStatistics.of(torch.tensor([[1.0, 4.0], [2.0, 3.0], [1.0, 2.0]]))
    ours = settings(num_samples=9, batch_size=4)
    measured = measure(task, ours, 3, train, paint, judge)
    (pictures,) = seen
    assert pictures.tolist() == [[7, i % 3, i] for i in range(9)]
    features = torch.from_numpy(pictures[:, 1:]).float()
    assert measured.frechet_distance == frechet_distance(train, FeatureStatistics.of(features))
    assert measured.accuracy == pytest.approx(6 / 9)
    assert (measured.images, measured.row_evaluations) == (9, 90)
    assert measured.cpu_seconds >= 0


@pytest.mark.parametrize("workers", [1, 2])
def test_all_cells_are_done_in_order_and_so_many_at_a_time(workers: int) -> None:
    tasks = [Task(cell, f"{number}", 1) for number, cell in enumerate(some_cells()[1])]
    begun: list[Task] = []
    at_once: list[int] = []
    finished: list[Task] = []
    last_alone = threading.Event()

    def do(task: Task) -> Measured:
        begun.append(task)
        at_once.append(len(begun) - len(finished))
        if task is tasks[-1]:
            assert last_alone.wait(30)
        return kept(float(task.key))

    with ThreadPoolExecutor(8) as pool:
        for task, measured in run(tasks, do, pool, workers=workers, hours=1.0):
            assert measured == kept(float(task.key))
            finished.append(task)
            if len(finished) == len(tasks) - 1:
                last_alone.set()
    assert {task.key for task in finished} == {task.key for task in tasks}
    assert len(finished) == len(tasks)
    assert max(at_once) <= workers
    if workers == 1:
        assert begun == finished == tasks


def test_no_cell_is_begun_after_the_time() -> None:
    tasks = [Task(cell, "key", 1) for cell in some_cells()[1]]
    with ThreadPoolExecutor(1) as pool:
        assert list(run(tasks, lambda task: kept(0.0), pool, workers=2, hours=0.0)) == []


def test_what_fails_in_a_worker_is_told() -> None:
    def do(task: Task) -> Measured:
        raise RuntimeError("no room")

    tasks = [Task(cell, "key", 1) for cell in some_cells()[1]]
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="no room"):
        list(run(tasks, do, pool, workers=2, hours=1.0))
