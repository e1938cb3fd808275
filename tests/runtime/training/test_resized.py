"""Workers killed and replaced by more and fewer: each row once per epoch, and the losses of one worker."""

import signal
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from ray_dit.config import OptimizerConfig
from ray_dit.core.order import rows_at
from ray_dit.storage.open import open_store
from tests.runtime.training.processes import Moment, start
from tests.runtime.training.regression import CONFIG, Regression, key_of, read_step, run
from tests.runtime.training.test_step import Denoising

ROWS, SEED = 40, 3
RESIZED = CONFIG.model_copy(update={"steps": 20, "checkpoint_every": 4, "log_every": 2, "batch_size": 4})


def test_each_row_is_trained_once_per_epoch_through_kills_by_one_two_and_one(tmp_path: Path) -> None:
    starts = ((1, 6), (2, 11), (2, 14), (1, None))
    for number, (workers, killed_in) in enumerate(starts):
        codes = start(
            tmp_path / "run", RESIZED, Regression, workers, killed_in=killed_in, notes=tmp_path / f"{number}"
        )
        assert (0 in codes) == (killed_in is None), codes
    trained: dict[int, list[int]] = {}
    for number in range(len(starts)):  # what a start trained after its last checkpoint the next trains again
        notes = sorted(tmp_path.glob(f"{number}-*"))
        seen = [int(position) for path in notes for position in path.read_text().split()]
        first = min(seen) // RESIZED.batch_size
        assert first % RESIZED.checkpoint_every == 0
        trained = {step: positions for step, positions in trained.items() if step < first}
        for position in seen:
            trained.setdefault(position // RESIZED.batch_size, []).append(position)
    ledger = [position for step in range(RESIZED.steps) for position in sorted(trained[step])]
    assert ledger == list(range(RESIZED.steps * RESIZED.batch_size))
    for epoch in np.split(rows_at(SEED, np.array(ledger), ROWS), len(ledger) // ROWS):
        assert sorted(epoch.tolist()) == list(range(ROWS))
    store = open_store(str(tmp_path / "run"))
    tensors, facts = read_step(store, RESIZED.steps)
    assert [(each.first, each.workers) for each in facts.history] == [(0, 1), (4, 2), (12, 1)]
    alone = run(tmp_path / "alone", RESIZED).log
    assert alone is not None
    np.testing.assert_allclose(tensors["log"].numpy()[:, :2], alone[:, :2], rtol=1e-5)


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_the_losses_of_two_workers_are_those_of_one(tmp_path: Path, precision: str, near: float) -> None:
    """Over 200 steps; here they were within 1.8e-6, and in bfloat16, whose roundings add up, within 2.7 %."""
    longer = {"steps": 200, "checkpoint_every": 200, "log_every": 1, "batch_size": 8, "precision": precision}
    config = CONFIG.model_copy(update=longer)
    assert start(tmp_path / "two", config, make_task, 2) == [0, 0]
    pair = read_step(open_store(str(tmp_path / "two")), 200)[0]["log"].numpy()
    alone = run(tmp_path / "one", config, make_task()).log
    assert alone is not None
    np.testing.assert_allclose(pair[:, :2], alone[:, :2], rtol=near)
    assert alone[-1, 1] < 0.1 * alone[0, 1]


WORKERS, PRECISIONS, COMPILED, MOMENTS = (1, 2, 3), ("float32", "bfloat16"), (False, True), get_args(Moment)
PAIRS = {
    # each value of one with each of another, but for three workers in a step
    (1, "float32", False, "step"),
    (1, "bfloat16", False, "checkpoint"),
    (2, "float32", False, "checkpoint"),
    (2, "bfloat16", False, "upload"),
    (3, "float32", False, "upload"),
    (1, "bfloat16", True, "upload"),
    (2, "float32", True, "step"),
    (3, "bfloat16", True, "checkpoint"),
}


def ways_to_be_killed() -> Iterator[Any]:
    """All there are; what is not in ``PAIRS`` is for `make faults`."""
    for way in product(WORKERS, PRECISIONS, COMPILED, MOMENTS):
        mark = pytest.mark.faults if way not in PAIRS else pytest.mark.slow
        yield pytest.param(*way, marks=[mark] if way[2] or way not in PAIRS else [])


@pytest.mark.parametrize(("workers", "precision", "compiled", "moment"), list(ways_to_be_killed()))
def test_killed_and_resumed_ends_in_the_bits_of_undisturbed(
    tmp_path: Path,
    workers: int,
    precision: str,
    compiled: bool,
    moment: Moment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, average, optimizer, loss curve and history: a checkpoint's bytes are all of them."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = CONFIG.model_copy(
        update={"batch_size": 6, "steps": 10, "precision": precision, "compile": compiled}
    )
    assert start(tmp_path / "whole", config, make_task, workers) == [0] * workers
    step = 6 if moment == "step" else 8
    codes = start(tmp_path / "killed", config, make_task, workers, killed_in=step, moment=moment)
    assert -signal.SIGKILL in codes
    assert start(tmp_path / "killed", config, make_task, workers) == [0] * workers
    whole, killed = (open_store(str(tmp_path / name)) for name in ("whole", "killed"))
    for step in (8, 10):
        key = key_of(whole, step)
        assert killed.get(key) == whole.get(key)
    tensors, _ = read_step(whole, 10)
    assert any(not torch.equal(value, read_step(whole, 8)[0][name]) for name, value in tensors.items())


class Placed(Denoising):
    """What a sample is follows from its position alone, not from its place in a worker's share."""

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        numbers = torch.from_numpy(positions % 8).float().reshape(-1, 1, 1, 1)
        return torch.cat([super().batch(positions), numbers.expand(-1, 1, 4, 4)], dim=1)

    def losses(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        values, numbers = batch[:, :2], batch[:, 2, 0, 0].long()
        eps = model(values, 10 * numbers, numbers % 3)[:, :2].float()
        return (eps - 2 * values).square().flatten(1).mean(dim=1)


def make_task() -> Placed:
    return Placed(OptimizerConfig(learning_rate=0.01, schedule="cosine", grad_clip=1.0))
