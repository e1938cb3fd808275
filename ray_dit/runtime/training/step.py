"""The passes of a step: losses and gradients, in the precision and the parts that the settings say.

Knows nothing of optimizers, checkpoints or Ray.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Generic

import torch
from torch import nn

from ray_dit.config import TrainingConfig
from ray_dit.core.compiled import compile_static
from ray_dit.runtime.training.parallel import Parallel
from ray_dit.runtime.training.task import Batch, Task


@dataclass
class Passes(Generic[Batch]):
    """Forward and backward passes over a step's batches, of which there are several where memory is short."""

    task: Task[Batch]
    model: nn.Module
    """Its parameters get the gradients."""
    parallel: Parallel
    config: TrainingConfig
    note: Callable[[torch.Tensor, torch.Tensor], object] = lambda t_range, losses: None
    """Given of each batch that is trained on the samples' range of t and loss; see ``Task.t_ranges``."""
    _wrapped: nn.Module = field(init=False)
    _called: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self._wrapped = self.parallel.wrap(self.model)
        # after the wrap: the compiler then sees where the workers' gradients are exchanged
        self._called = compile_static(self._wrapped) if self.config.compile else self._wrapped

    def settle(self, batch: Callable[[], Batch]) -> None:
        """See ``Parallel.settle``; called once, before the first step."""
        self.parallel.settle(self._wrapped, lambda: self.loss(batch()))

    def loss(self, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch, float32."""
        return self.losses(self._called, batch).mean()

    def losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The losses [B] of ``model``, float32."""
        with self._autocast():
            return self.task.losses(model, batch).float()

    def gradients(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Leaves the mean gradient of all workers' batches in the parameters; the mean loss of this one's."""
        losses: list[torch.Tensor] = []
        for number, batch in enumerate(batches, start=1):
            # the workers' gradients become their mean in the backward pass of the last
            with nullcontext() if number == len(batches) else self.parallel.apart(self._wrapped):
                each = self.losses(self._called, batch)
                loss = each.mean()
                (loss / len(batches) if len(batches) > 1 else loss).backward()
            losses.append(loss.detach())
            if self.task.t_ranges:
                self.note(self.task.t_range(batch), each.detach())
        return torch.stack(losses).mean() if len(losses) > 1 else losses[0]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "float32":
            return nullcontext()
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, torch.bfloat16)
