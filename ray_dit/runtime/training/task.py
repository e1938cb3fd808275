"""What a training stage hands over; knows nothing of workers, checkpoints or the order of a step."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_dit.config import OptimizerConfig
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job

Batch = TypeVar("Batch")
"""A task's own type of a batch; the loop only carries it from ``batch`` to ``losses``."""


class Task(Protocol[Batch]):
    """A model and what it learns; pickled to the workers, where ``setup`` is called first."""

    optimizer: OptimizerConfig
    ema_decay: float | None
    """Largest decay of the averaged weights; None trains without them."""

    @property
    def t_ranges(self) -> tuple[str, ...]:
        """Names of the ranges of t whose losses the curve shows apart, as "0-99"; none without a t."""
        ...

    def setup(self, device: torch.device) -> nn.Module:
        """Opens the data and builds the model on ``device`` with initial weights equal on every worker."""
        ...

    def fetch(self, positions: NDArray[np.int64]) -> Any:
        """What must be read for the samples at these global positions; in a thread, ahead of the step."""
        ...

    def batch(self, fetched: Any) -> Batch:
        """The samples, on the device, of what ``fetch`` gave.

        A pure function of their positions, whoever asks and whenever.
        """
        ...

    def losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Loss [B] of the samples. ``model`` is called once: it may be wrapped to average gradients."""
        ...

    def t_range(self, batch: Batch) -> torch.Tensor:
        """Which of ``t_ranges`` each sample falls in, [B] int64; asked for only where there are some."""
        ...

    def heldout(self, step: int, size: int) -> Iterable[Batch]:
        """Samples no model trains on, whose mean loss is the validation loss after ``step`` steps.

        Batches of at most ``size``, the same at every step; none where no validation loss is due.
        """
        ...

    def flops(self) -> float:
        """Floating-point operations that a sample's forward and backward pass take."""
        ...

    def memory(self, config: Any) -> dict[str, int]:
        """Bytes that each part takes in a worker with these settings, which are of the task's own kind."""
        ...

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        """Objects to write beside the checkpoint of ``step`` (sample grids), by key.

        ``model`` has the averaged weights. They are stored at these keys with the hash of the worker history.
        """
        ...

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job, history: History) -> None:
        """Writes the result.

        ``model`` has the averaged weights; rows of ``log`` are points (`formats/loss_curve.py`);
        ``history``: which workers trained which steps; what another one has left unfinished goes.
        """
        ...
