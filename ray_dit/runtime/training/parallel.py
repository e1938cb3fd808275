"""How the workers' models become one: a wrapper around the model, and what the workers tell each other.

Knows nothing of samples, checkpoints or Ray: whoever starts the workers has joined them into torch's process
group.
"""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
from torch import nn

from ray_dit.ledger.runs import machine_kind

GROUP_TIMEOUT = timedelta(minutes=30)
"""As Ray Train's: how long workers wait for one another."""
LONGEST = 512
"""Bytes of what one worker tells the others."""


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
    def kind(self) -> Callable[[], str]:
        """Tells this worker's kind of machine."""
        ...

    @property
    def notice(self) -> Callable[[], bool]:
        """Tells all workers alike whether one of them will soon be gone; each asks as often as the others."""
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

    def tell(self, word: str, device: torch.device) -> list[str]:
        """What each worker gave, by rank; at most ``LONGEST`` bytes of UTF-8 each."""
        ...

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a scalar over the workers."""
        ...

    def means(self, values: torch.Tensor) -> list[float]:
        """The mean of each of some values [N] over the workers."""
        ...


def nobody_goes() -> bool:
    """Where no node goes before its time."""
    return False


@dataclass(frozen=True)
class Alone:
    """One worker; nothing to wrap, nobody to ask. Methods as in ``Parallel``."""

    rank: int = 0
    world_size: int = 1
    kind: Callable[[], str] = machine_kind
    notice: Callable[[], bool] = nobody_goes

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def settle(self, wrapped: nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        pass

    def tell(self, word: str, device: torch.device) -> list[str]:
        return [word]

    def mean(self, value: torch.Tensor) -> float:
        return float(value)

    def means(self, values: torch.Tensor) -> list[float]:
        return values.tolist()


@dataclass(frozen=True)
class DataParallel:
    """Every worker has the whole model, and DDP averages their gradients. Methods as in ``Parallel``."""

    rank: int
    world_size: int
    kind: Callable[[], str] = machine_kind
    notice: Callable[[], bool] = nobody_goes

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

    def tell(self, word: str, device: torch.device) -> list[str]:
        told = torch.frombuffer(bytearray(word.encode().ljust(LONGEST, b"\0")), dtype=torch.uint8).to(device)
        if len(told) > LONGEST:
            raise ValueError(f"{word!r} is longer than {LONGEST} bytes")
        heard = [torch.empty_like(told) for _ in range(self.world_size)]
        torch.distributed.all_gather(heard, told)
        return [bytes(each.tolist()).rstrip(b"\0").decode() for each in heard]

    def mean(self, value: torch.Tensor) -> float:
        return self.means(value.reshape(1))[0]

    def means(self, values: torch.Tensor) -> list[float]:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return (total / self.world_size).tolist()


def make_parallel(rank: int, world_size: int) -> Alone | DataParallel:
    """The way ``world_size`` workers train together."""
    return DataParallel(rank, world_size) if world_size > 1 else Alone()


def meeting_at(host: str) -> str:
    """An address at which workers can meet on this machine, whose name or number is ``host``."""
    with socket.socket() as free:
        free.bind(("", 0))
        return f"tcp://{f'[{host}]' if ':' in host else host}:{free.getsockname()[1]}"


def regroup(meeting: str, rank: int, working: int) -> None:
    """Makes the first ``working`` workers torch's process group; every worker of the one before calls it.

    The others are in none afterwards, and a worker that is alone needs none.
    """
    backend = torch.distributed.get_backend()
    torch.distributed.destroy_process_group()
    if rank < working and working > 1:
        torch.distributed.init_process_group(
            backend, init_method=meeting, rank=rank, world_size=working, timeout=GROUP_TIMEOUT
        )
