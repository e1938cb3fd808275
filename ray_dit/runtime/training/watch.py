"""Notices losses and gradients that are not finite, before anything made of them is saved."""

import math

import torch

from ray_dit.errors import UserError


class Diverged(UserError):
    """A loss or a gradient is not finite; the same settings would come to the same."""


class Watch:
    """Remembers the first step that was not finite.

    On an accelerator it looks only where the loss curve gets a point, as the loop waits for it there anyway;
    on a CPU at every step.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cpu = device.type == "cpu"
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._values = torch.zeros(2, device=device)

    def see(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Of step ``step``: this worker's loss, and the norm of all workers' mean gradient.

        Diverged on a CPU where the norm, which is the same on all workers, is not finite.
        """
        first = (self._step < 0) & ~torch.isfinite(norm)
        self._step = self._step.masked_fill(first, step)  # a number, not a copy
        self._values = torch.where(first, torch.stack([loss.float(), norm.float()]), self._values)
        if self._is_cpu:
            self._check()

    def check(self, step: int, mean: float) -> None:
        """At a point of the loss curve, ``mean``, after ``step`` steps; Diverged where any was not finite."""
        self._check()
        if not math.isfinite(mean):
            raise _diverged(f"by step {step}: its mean loss is {mean:g}")

    def _check(self) -> None:
        step = int(self._step)
        if step >= 0:
            loss, norm = self._values.tolist()
            raise _diverged(f"in step {step + 1}: its loss is {loss:g}, the norm of its gradient {norm:g}")


def _diverged(how: str) -> Diverged:
    return Diverged(
        f"the training diverged {how}. Nothing is saved of it, and the same settings would come to the same: "
        "begin in another output folder with a lower --optimizer.learning-rate, with --optimizer.grad-clip "
        "or with --optimizer.warmup-steps"
    )
