"""How the workers' models become one: a wrapper around the model, and what the workers tell each other.

Knows nothing of samples, checkpoints or Ray: whoever starts the workers has joined them into torch's process
group.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


class Parallel(Protocol):
    """This worker among the others.

    All methods are collective: every worker calls them, in the same order.
    """

    @property
    def rank(self) -> int:
        """0..world_size-1; rank 0 writes."""
        ...

    @property
    def world_size(self) -> int: ...

    @property
    def is_local_first(self) -> bool:
        """Whether this is the first worker of its machine."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` as the loop calls it.

        A backward pass leaves the mean gradient of all workers in its parameters.
        """
        ...

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[object]:
        """Within it a backward pass adds to this worker's gradients alone."""
        ...

    def settle(self, wrapped: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        """Called before the first step of every start, fresh or resumed.

        Whatever the wrapper decides during its first backward pass is decided here, so that a resumed run
        sums gradients in the order an undisturbed one does.

        ``loss`` is some scalar loss; no weight and no gradient is left changed.
        """
        ...

    def agree(self, value: int, device: torch.device) -> int:
        """The value that rank 0 gave."""
        ...

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over the workers."""
        ...

    def means(self, values: torch.Tensor) -> list[float]:
        """The mean of each of some values [N] over the workers."""
        ...


@dataclass(frozen=True)
class Alone:
    """One worker; nothing to wrap, nobody to ask. Methods as in ``Parallel``."""

    rank: int = 0
    world_size: int = 1
    is_local_first: bool = True

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def settle(self, wrapped: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        pass

    def agree(self, value: int, device: torch.device) -> int:
        return value

    def mean(self, value: torch.Tensor) -> float:
        return float(value)

    def means(self, values: torch.Tensor) -> list[float]:
        return values.tolist()


@dataclass(frozen=True)
class DataParallel:
    """Every worker has the whole model, and DDP averages their gradients. Methods as in ``Parallel``."""

    rank: int
    world_size: int
    is_local_first: bool

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model)

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[object]:
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        return wrapped.no_sync()

    def settle(self, wrapped: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        # After its first backward pass DDP regroups its gradient buckets, and the grouping decides in which
        # order the values of more than two workers are added. The sum of two values has only one order.
        if self.world_size > 2:
            loss().backward()
            wrapped.zero_grad(set_to_none=True)

    def agree(self, value: int, device: torch.device) -> int:
        told = torch.tensor([value], device=device)
        torch.distributed.broadcast(told, src=0)
        return int(told)

    def mean(self, value: torch.Tensor) -> float:
        return self.means(value.reshape(1))[0]

    def means(self, values: torch.Tensor) -> list[float]:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return (total / self.world_size).tolist()


def make_parallel(rank: int, local_rank: int, world_size: int) -> Parallel:
    """The way ``world_size`` workers train together; ``local_rank`` counts those of one machine."""
    return DataParallel(rank, world_size, local_rank == 0) if world_size > 1 else Alone()
