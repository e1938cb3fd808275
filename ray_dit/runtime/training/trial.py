"""A task that is timed while it trains for a few steps: what `--plan` knows of a training.

It writes to a ``ScratchStore``. Times are differences of one worker's clock, so clocks need not agree. Knows
nothing of Ray.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_dit.config import OptimizerConfig
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.task import Task
from ray_dit.storage.scratch import ScratchStore

WARM_UP = 2
"""Steps that are not counted: memory is allocated, kernels are chosen."""


@dataclass(frozen=True)
class TrainingTimes:
    """What the first worker of a trial measured, in seconds."""

    step: float
    """Median of the steps after the warm-up, their batches included."""
    checkpoint: float
    """Writing samples and a checkpoint, without the time that storage takes."""
    finish: float
    """Writing the result, likewise."""
    working: float
    """From the first step after the warm-up to the end; what came before was start-up."""
    memory: int | None = None
    """The most bytes that the worker had on its GPU; None without one."""


@dataclass
class TimedTask:
    """Does what ``task`` does and tells how long it took, at the end and from the first worker only."""

    task: Task[Any]
    tell: Callable[[TrainingTimes, Mapping[str, int]], object]
    """Given the times, and the bytes of each object that was written, by its full key."""
    optimizer: OptimizerConfig = field(init=False)
    ema_decay: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer, self.ema_decay = self.task.optimizer, self.task.ema_decay
        self._steps: list[float] = []
        self._checkpoint = 0.0

    @property
    def t_ranges(self) -> tuple[str, ...]:
        """See ``Task``, as for all methods here."""
        return self.task.t_ranges

    def setup(self, device: torch.device) -> nn.Module:
        self._device = device
        return self.task.setup(device)

    def fetch(self, positions: NDArray[np.int64]) -> Any:
        return self.task.fetch(positions)

    def batch(self, fetched: Any) -> Any:
        self._steps.append(self._now())
        return self.task.batch(fetched)

    def losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self.task.losses(model, batch)

    def t_range(self, batch: Any) -> torch.Tensor:
        return self.task.t_range(batch)

    def heldout(self, step: int, size: int) -> Iterable[Any]:
        return ()  # how often they are judged does not change with the steps of a trial

    def flops(self) -> float:
        return self.task.flops()

    def memory(self, config: Any) -> dict[str, int]:
        return self.task.memory(config)

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        self._checkpoint = self._now()
        return self.task.at_checkpoint(model, step)

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job, history: History) -> None:
        begun = self._now()
        self.task.finish(model, log, job, history)
        end = self._now()
        # the step before the checkpoint ended where it began
        marks = [*self._steps[WARM_UP:], self._checkpoint]
        times = TrainingTimes(
            step=statistics.median(np.diff(marks).tolist()),
            checkpoint=begun - self._checkpoint,
            finish=end - begun,
            working=end - marks[0],
            memory=torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None,
        )
        assert isinstance(job.store, ScratchStore)
        self.tell(times, job.store.sizes)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic()
