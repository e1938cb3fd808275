"""Workers of a training as processes joined by gloo, without Ray, which can be killed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ray_dit.config import TrainingConfig
from ray_dit.core.determinism import make_deterministic
from ray_dit.runtime.training.parallel import make_parallel
from ray_dit.storage.local import LocalStore
from tests.runtime.training.regression import Regression, run

SECONDS = 600

Moment = Literal["step", "checkpoint", "upload"]
"""When a worker is killed: in a step, before a checkpoint is stored, or when it is but its marker is not."""


@dataclass(frozen=True)
class DyingStore(LocalStore):
    """A folder whose writer is killed over the checkpoint of a step."""

    step: int = -1
    moment: Moment = "checkpoint"

    def put(self, key: str, data: bytes) -> bool:
        is_it = key.startswith(f"checkpoints/step-{self.step:08d}")
        if is_it and self.moment == "upload":
            assert super().put(key, data)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().put(key, data)


@dataclass
class Killed(Regression):
    """Does what ``task`` does; a worker of it is killed in a step, and each notes the samples it trains."""

    task: Regression = None  # type: ignore[assignment]
    step: int = -1
    batch_size: int = 1
    saved: Path | None = None
    """Pattern of the marker that must be there before: of the checkpoint that is due by then."""
    notes: Path | None = None

    def __post_init__(self) -> None:
        self.optimizer, self.ema_decay = self.task.optimizer, self.task.ema_decay

    def setup(self, device: torch.device) -> torch.nn.Module:
        return self.task.setup(device)

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        if self.step * self.batch_size in positions:
            while self.saved is not None and not list(self.saved.parent.glob(self.saved.name)):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.notes is not None:
            with open(self.notes, "a") as file:
                file.writelines(f"{position}\n" for position in positions.tolist())
        return self.task.batch(positions)

    def losses(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return self.task.losses(model, batch)

    def at_checkpoint(self, model: torch.nn.Module, step: int) -> dict[str, bytes]:
        return {}


def _work(
    rank: int,
    workers: int,
    meeting: Path,
    store: LocalStore,
    config: TrainingConfig,
    task: Killed,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)  # that of the process it is forked from is older
    make_deterministic(1)
    if workers > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers
        )
    if task.notes is not None:
        task.notes = task.notes.with_name(f"{task.notes.name}-{rank}")
    run(Path(store.uri), config, task, parallel=make_parallel(rank, workers), store=store)


def start(
    folder: Path,
    config: TrainingConfig,
    make_task: Callable[[], Regression],
    workers: int,
    *,
    killed_in: int | None = None,
    moment: Moment = "step",
    notes: Path | None = None,
) -> list[int | None]:
    """One start of a training; the exit codes of its workers.

    The worker that has the first sample of step ``killed_in`` is killed there, when the checkpoint before is
    written; at another ``moment`` it is the one that writes the checkpoint of that step. ``notes``: where
    each writes the positions of the samples it trains, by its rank.
    """
    step = -1 if killed_in is None else killed_in
    task = Killed(task=make_task(), step=step if moment == "step" else -1, batch_size=config.batch_size)
    task.notes = notes
    store = DyingStore(str(folder), step, moment) if moment != "step" else LocalStore(str(folder))
    due = (killed_in or 0) // config.checkpoint_every * config.checkpoint_every
    task.saved = folder / f"_plain/checkpoints/step-{due:08d}-*.json" if due else None
    meeting = folder.with_name(f"{folder.name}-meeting")
    meeting.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    # torch takes seconds to load, and so does what its optimizers load when the first one is made
    context.set_forkserver_preload([__name__, make_task.__module__, "torch._dynamo"])
    arguments: Any = (workers, meeting, store, config, task, dict(os.environ))
    processes = [context.Process(target=_work, args=(rank, *arguments)) for rank in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # one that still waits for who was killed
    return codes
