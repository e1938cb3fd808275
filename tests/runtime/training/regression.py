"""A training small enough to run without Ray in milliseconds, and what the loop reports to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from ray_dit.config import OptimizerConfig, TrainingConfig
from ray_dit.core.memory import Kept
from ray_dit.folders.checkpoints import (
    Checkpoint,
    checkpoints,
    for_history,
    leave_only_result,
    read_checkpoint,
)
from ray_dit.formats.worker_history import History, keyed
from ray_dit.ledger.job import Job
from ray_dit.results import Trained
from ray_dit.runtime.training.board import Progress
from ray_dit.runtime.training.checkpointer import Saved
from ray_dit.runtime.training.memory import worker_memory
from ray_dit.runtime.training.parallel import Alone, Parallel
from ray_dit.runtime.training.worker import train_worker
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

CONFIG = TrainingConfig(output="unused", steps=8, batch_size=4, checkpoint_every=4, log_every=2)
CPU = torch.device("cpu")


@dataclass
class Regression:
    """A small network learns a fixed function; sample p's input is a function of p."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=0.01, schedule="cosine", warmup_steps=2)
    ema_decay: float | None = 0.9
    width: int = 8
    seen: list[int] = field(default_factory=lambda: [])
    result: dict[str, torch.Tensor] = field(default_factory=lambda: {})
    log: np.ndarray | None = None
    t_ranges: tuple[str, ...] = ()
    history: History = ()
    scale: float = 1.0
    """Of its inputs; near 1, it is as another kind of machine: the same samples, other last bits."""

    def setup(self, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, self.width), nn.Tanh(), nn.Linear(self.width, 1)).to(device)

    def fetch(self, positions: np.ndarray) -> np.ndarray:
        return positions

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        self.seen += positions.tolist()
        return torch.from_numpy(self.scale * np.sin(np.outer(positions + 1, [1.0, 2.0, 3.0]))).float()

    def losses(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch) - batch.sum(dim=1, keepdim=True)).square().flatten()

    def t_range(self, batch: torch.Tensor) -> torch.Tensor:
        raise AssertionError("these samples have no t")

    def heldout(self, step: int, size: int) -> Iterator[torch.Tensor]:
        yield from ()

    def flops(self) -> float:
        return 3.0 * 2 * (3 * self.width + self.width)

    def memory(self, config: TrainingConfig) -> dict[str, int]:
        return worker_memory(config, 1000, Kept(0, 1000), average=True)

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        return {f"picture-{step}": save({"weight": model[0].weight.detach().clone()})}  # type: ignore[index]

    def finish(self, model: nn.Module, log: np.ndarray, job: Job, history: History) -> None:
        self.result = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.log, self.history = log, history


class Ending(Regression):
    """Leaves sample grids, weights, a loss curve and a manifest, as the trainings do."""

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        return {f"samples/step-{step:08d}.png": super().at_checkpoint(model, step)[f"picture-{step}"]}

    def finish(self, model: nn.Module, log: np.ndarray, job: Job, history: History) -> None:
        super().finish(model, log, job, history)
        job, facts = for_history(job, history)
        job.put("weights", "weights", save(self.result), facts)
        job.put_plain(keyed("loss.json", history), str(log.tolist()).encode(), computed=True)
        leave_only_result(job, "loss.json", history)
        job.finish(Trained().of(history))


def run(
    folder: Path,
    config: TrainingConfig = CONFIG,
    task: Regression | None = None,
    *,
    parallel: Parallel | None = None,
    shown: list[Progress] | None = None,
    told: list[str] | None = None,
    store: Store | None = None,
) -> Regression:
    """What one worker does; returns the task, which has the result.

    Its progress is appended to ``shown``, its notes to ``told``. ``store``: another way to ``folder``.
    """
    task = task or Regression()
    job = Job.open(store or open_store(str(folder)), "train", {"test": True})
    show = (lambda progress: None) if shown is None else shown.append
    tell = (lambda note: None) if told is None else told.append
    train_worker(task, config, job, device=CPU, parallel=parallel or Alone(), show=show, tell=tell)
    return task


def at_half(folder: Path) -> Store:
    """A finished run's folder, put back to its checkpoint of step 4."""
    run(folder)
    store = open_store(str(folder))
    forget(store, 8)
    return store


def saved(store: Store, step: int, prefix: str = "") -> Checkpoint:
    """The checkpoint of this step, of which there is one."""
    (found,) = [each for each in checkpoints(store, prefix) if each.step == step]
    return found


def read_step(store: Store, step: int) -> Saved:
    """What it holds."""
    return read_checkpoint(store, saved(store, step))


def key_of(store: Store, step: int) -> str:
    """Where it lies."""
    return saved(store, step).key()


def picture_of(store: Store, step: int) -> str:
    """Where the picture of this step lies."""
    (info,) = store.list(f"picture-{step}")
    return info.key


def forget(store: Store, step: int) -> None:
    """Deletes a step's checkpoint and picture."""
    for key in (key_of(store, step), picture_of(store, step)):
        store.delete(key)


def same(left: Regression, right: Regression) -> bool:
    """Whether two runs ended in the same bits."""
    return (
        all(torch.equal(value, right.result[name]) for name, value in left.result.items())
        and left.history == right.history
        and left.log is not None
        and right.log is not None
        and np.array_equal(left.log, right.log, equal_nan=True)
    )
