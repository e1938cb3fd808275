"""Which samples a worker's share of a step has; knows nothing of what a sample is.

Global batch s is positions [s·B, (s+1)·B), and worker r of W takes the r-th of W equal slices. So a step has
the same samples whatever the number of workers, and the state of the data is the step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_dit.runtime.training.task import Batch

Made = TypeVar("Made", covariant=True)


class DataSource(Protocol[Made]):
    """Where the loop takes its batches from."""

    def batches(self, first: int, end: int) -> Iterator[Made]:
        """This worker's batches of the steps first..end-1, in order.

        The loop may stop early; a source that works ahead stops when the iterator is closed.
        """
        ...


@dataclass(frozen=True)
class StepBatches(Generic[Batch]):
    """Makes each batch when it is asked for."""

    make: Callable[[NDArray[np.int64]], Batch]
    """The batch of some positions: ``Task.batch``."""
    batch_size: int
    """Samples per step over all workers, a multiple of ``world_size``."""
    rank: int = 0
    world_size: int = 1

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """See ``DataSource``."""
        for step in range(first, end):
            yield self.make(step_positions(step, self.batch_size, self.rank, self.world_size))


def step_positions(step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The sample positions of worker ``rank`` in step ``step``, rising."""
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return np.arange(first, first + share)
