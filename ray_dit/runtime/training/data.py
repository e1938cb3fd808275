"""Which samples a worker's share of a step has, fetched ahead; knows nothing of what a sample is.

Global batch s is positions [s·B, (s+1)·B), and worker r of W takes the r-th of W equal slices. So a step has
the same samples whatever the number of workers, and the state of the data is the step.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_dit.runtime.training.task import Batch, Task

Made = TypeVar("Made", covariant=True)

AHEAD = 2
"""Steps whose samples are fetched while one is computed."""


class DataSource(Protocol[Made]):
    """Where the loop takes its batches from."""

    def batches(self, first: int, end: int) -> Iterator[Sequence[Made]]:
        """This worker's batches of the steps first..end-1, in order; of each step as many as asked for.

        The loop may stop early; a source that works ahead stops when the iterator is closed.
        """
        ...


@dataclass
class StepBatches(Generic[Batch]):
    """Fetches samples ahead in a thread, and makes batches of them when they are asked for."""

    task: Task[Batch]
    batch_size: int
    """Samples per step over all workers, a multiple of ``world_size * parts``."""
    rank: int = 0
    world_size: int = 1
    parts: int = 1
    """Batches per step."""
    clock: Callable[[], float] = time.monotonic
    waited: float = 0.0
    """Seconds the loop has waited for samples so far."""

    def batches(self, first: int, end: int) -> Generator[Sequence[Batch]]:
        """See ``DataSource``."""
        with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
            fetched: deque[Future[list[Any]]] = deque()
            try:
                for step in range(first, end):
                    fetched.append(pool.submit(self._fetch, step))
                    if len(fetched) > AHEAD:
                        yield self._made(fetched.popleft())
                while fetched:
                    yield self._made(fetched.popleft())
            finally:
                for future in fetched:
                    future.cancel()

    def _fetch(self, step: int) -> list[Any]:
        positions = step_positions(step, self.batch_size, self.rank, self.world_size)
        return [self.task.fetch(part) for part in np.split(positions, self.parts)]

    def _made(self, fetched: Future[list[Any]]) -> list[Batch]:
        begun = self.clock()
        samples = fetched.result()
        self.waited += self.clock() - begun
        return [self.task.batch(part) for part in samples]


def step_positions(step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The sample positions of worker ``rank`` in step ``step``, rising."""
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return np.arange(first, first + share)
