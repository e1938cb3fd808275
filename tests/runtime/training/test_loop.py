"""The order of a step: clipping, the loss curve, samples and checkpoints."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_dit.config import OptimizerConfig
from ray_dit.core.train_step import ema_decay, learning_rate, make_ema, make_optimizer, update_ema
from ray_dit.folders.checkpoints import Checkpoint
from ray_dit.formats.loss_curve import Point
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.checkpointer import Saved
from ray_dit.runtime.training.data import StepBatches
from ray_dit.runtime.training.loop import train_steps
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.state import TrainingState
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, CPU, Regression, read_step, run


def test_the_loop_is_these_lines_with_checkpoints_around_them(tmp_path: Path) -> None:
    """The plain loop written out: each step's learning rate, the average of the weights after it."""
    task = Regression(OptimizerConfig(learning_rate=0.01, schedule="cosine", warmup_steps=3, grad_clip=0.1))
    result = run(tmp_path, task=task).result
    model = task.setup(CPU)
    optimizer, ema = make_optimizer(model, task.optimizer), make_ema(dict(model.named_parameters()))
    for step in range(CONFIG.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(task.optimizer, step, CONFIG.steps)
        optimizer.zero_grad()
        task.losses(model, task.batch(np.arange(4 * step, 4 * step + 4))).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        update_ema(ema, dict(model.named_parameters()), ema_decay(step, 0.9))
    trained = read_step(open_store(str(tmp_path)), CONFIG.steps)[0]
    for name, value in model.named_parameters():
        assert torch.equal(value, trained[f"model.{name}"])
        assert torch.equal(ema[name], result[name])


@pytest.mark.parametrize(("grad_clip", "shorter"), [(None, False), (1e-3, True), (1e3, False)])
def test_gradients_longer_than_asked_for_are_scaled_down(
    tmp_path: Path, grad_clip: float | None, shorter: bool
) -> None:
    once = CONFIG.model_copy(update={"steps": 1})
    run(tmp_path, once, Regression(OptimizerConfig(grad_clip=grad_clip)))
    tensors, _ = read_step(open_store(str(tmp_path)), 1)
    averages = [value.flatten() for name, value in tensors.items() if name.endswith(".exp_avg")]
    norm = torch.cat(averages).norm().item() / (1 - OptimizerConfig().betas[0])
    assert norm == pytest.approx(1e-3, rel=1e-2) if shorter else norm > 0.1


def test_the_loss_curve_is_the_mean_since_the_last_point(tmp_path: Path) -> None:
    log = run(tmp_path).log
    assert log is not None
    assert log[:, 0].tolist() == [2, 4, 6, 8]
    every = run(tmp_path / "every", CONFIG.model_copy(update={"log_every": 1})).log
    assert every is not None
    np.testing.assert_allclose(log[:, 1], every[:, 1].reshape(4, 2).mean(axis=1), rtol=1e-12)


def test_the_last_point_is_the_mean_of_the_steps_that_are_left(tmp_path: Path) -> None:
    log = run(tmp_path, CONFIG.model_copy(update={"steps": 7, "log_every": 4})).log
    every = run(tmp_path / "every", CONFIG.model_copy(update={"steps": 7, "log_every": 1})).log
    assert log is not None
    assert every is not None
    assert log[:, 0].tolist() == [4, 7]
    np.testing.assert_allclose(log[1, 1], every[4:, 1].mean(), rtol=1e-12)


@dataclass
class Noted:
    """A checkpointer in memory that notes what was there when it was asked to save."""

    folder: Path
    due: set[int]
    saved: list[tuple[int, list[Point], bool]] = field(default_factory=lambda: [])

    def found(self) -> list[Checkpoint]:
        return []

    def read(self, checkpoint: Checkpoint) -> Saved:
        raise AssertionError("there is nothing to read")

    def drop(self, checkpoint: Checkpoint) -> bool:
        raise AssertionError("nothing is damaged")

    way_out, ends = "", ()

    def is_due(self, step: int) -> bool:
        return step in self.due

    def save(self, state: TrainingState, *, passing: bool = False) -> None:
        assert not passing
        assert state.model.training
        self.saved.append((state.step, list(state.log), (self.folder / f"picture-{state.step}").exists()))

    def close(self) -> None:
        pass

    def finish(self, history: History, listed: frozenset[str] | None = None) -> None:
        pass


@dataclass(frozen=True)
class Counted(Alone):
    """One of two workers, the other of which sees the same; counts the means they take together."""

    taken: list[list[float]] = field(default_factory=lambda: [])

    def means(self, values: torch.Tensor) -> list[float]:
        self.taken.append(values.tolist())
        return values.tolist()


def steps(folder: Path, rank: int) -> tuple[Noted, Counted, list[int]]:
    """Runs the loop as worker ``rank``; its checkpointer, its wrapper, and the steps it reported."""
    task, noted, counted = Regression(), Noted(folder, {3, 8}), Counted(rank, 2)
    state = TrainingState.initial(task.setup(CPU), task.optimizer, task.ema_decay)
    job = Job.open(open_store(str(folder)), "train", {"test": True})
    data = StepBatches(task, CONFIG.batch_size)
    reported: list[int] = []
    train_steps(
        state, task, CONFIG, job, data=data, parallel=counted, checkpointer=noted,
        report=lambda state: reported.append(state.step),
    )  # fmt: skip
    return noted, counted, reported


def test_a_checkpoint_comes_after_its_samples_and_its_point_of_the_curve(tmp_path: Path) -> None:
    noted, counted, reported = steps(tmp_path, rank=0)
    assert [(step, len(log), there) for step, log, there in noted.saved] == [(3, 1, True), (8, 4, True)]
    assert [point[0] for point in noted.saved[-1][1]] == [2, 4, 6, 8]
    assert reported == list(range(1, 9))
    assert len(counted.taken) == 4


def test_the_other_workers_take_part_in_the_mean_and_write_nothing(tmp_path: Path) -> None:
    noted, counted, reported = steps(tmp_path, rank=1)
    assert noted.saved == []
    assert reported == []
    assert len(counted.taken) == 4
    assert not list(tmp_path.glob("picture-*"))
