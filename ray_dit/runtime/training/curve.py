"""What becomes a point of the loss curve: sums of what the steps since the last one came to.

Knows nothing of steps, tasks or Ray. The sums lie where the model is, and are looked at when a point is due:
bringing each step's numbers to the host would make it wait for the accelerator. They are no part of a
checkpoint, since every checkpoint comes with a point.
"""

import math

import torch

from ray_dit.runtime.training.parallel import Parallel


class Sums:
    """This worker's sums since the last point."""

    def __init__(self, ranges: int, device: torch.device) -> None:
        self._steps = 0
        self._of_steps = torch.zeros(2, dtype=torch.float64, device=device)
        """Losses and norms."""
        self._of_ranges = torch.zeros(2, ranges, dtype=torch.float64, device=device)
        """Of each range of t: losses, and how many samples they are of."""
        self._ranges = torch.arange(ranges, device=device)

    def add_samples(self, t_range: torch.Tensor, losses: torch.Tensor) -> None:
        """Samples of these losses [B], each in the range [B] of that number."""
        # not index_add, whose order on an accelerator is not fixed
        falls = (t_range[:, None] == self._ranges).double()
        self._of_ranges += torch.stack([(losses.double()[:, None] * falls).sum(0), falls.sum(0)])

    def add_step(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """A step: this worker's mean loss, and the norm of all workers' mean gradient."""
        self._of_steps += torch.stack([loss.double(), norm.double()])
        self._steps += 1

    def take(self, parallel: Parallel) -> tuple[float, float, list[float]]:
        """Over all workers the mean loss and norm, and the mean loss in each range; then begins anew.

        Collective. NaN for a range that no sample fell in.
        """
        values = torch.cat([self._of_steps / self._steps, self._of_ranges.flatten()])
        loss, norm, *rest = parallel.means(values)
        by_t, counts = rest[: len(self._ranges)], rest[len(self._ranges) :]
        self._steps = 0
        self._of_steps.zero_()
        self._of_ranges.zero_()
        # NaN as Python has it: that of a division of zeros has other bits from one processor to the next
        shares = [total / count if count else math.nan for total, count in zip(by_t, counts, strict=True)]
        return loss, norm, shares
