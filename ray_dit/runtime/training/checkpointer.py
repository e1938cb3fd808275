"""When the state is written, where to, and what is kept; knows nothing of workers or of what is trained.

A checkpoint is made in two phases: the loop waits while the tensors are copied to the host, and not while
they are written.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from ray_dit.config import TrainingConfig
from ray_dit.errors import Damaged
from ray_dit.folders.checkpoints import checkpoint_key, checkpoint_names, checkpoint_steps, read_checkpoint
from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.state import TrainingState

KEPT = 2
"""Two: where the newest turns out damaged, the run goes on from the one before."""

Saved = tuple[dict[str, torch.Tensor], CheckpointFacts]
"""What a ``TrainingState`` is restored from."""


class Checkpointer(Protocol):
    """Rank 0 saves and says which checkpoints there are; every rank reads."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The last steps of the generations before; none but in an extension."""
        ...

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, the newest first."""
        ...

    def read(self, step: int) -> Saved:
        """The state saved at ``step``; Damaged if it is not what was written."""
        ...

    def drop(self, step: int) -> bool:
        """Deletes a damaged checkpoint, so that the run writes it anew; False if it is not the run's own."""
        ...

    @property
    def way_out(self) -> str:
        """What to do where none of the checkpoints can be read, but for restoring one."""
        ...

    def is_due(self, step: int) -> bool:
        """Whether the state after ``step`` steps shall be saved."""
        ...

    def save(self, state: TrainingState) -> None:
        """Begins to save the state, whose tensors may change at once afterwards.

        What went wrong with the checkpoint before is raised here, or by ``finish``.
        """
        ...

    def close(self) -> None:
        """Returns when nothing is being written any more, however that went: the run has failed elsewhere."""
        ...

    def finish(self) -> None:
        """Ends the run: returns when everything saved is written and only what shall stay is there."""
        ...


@dataclass
class JobCheckpointer:
    """Checkpoints in the job's folder every so many steps, one written at a time while training goes on.

    Where one is due before the last is written, the loop waits: which are kept must not depend on clocks. An
    extension goes on from those of the generations before, and leaves them as they are.
    """

    job: Job
    every: int
    """Steps between checkpoints."""
    last: int
    """The run's last step, which gets one too."""
    keep: int = KEPT
    ends: tuple[int, ...] = ()
    """The last steps of the generations before."""
    clock: Callable[[], float] = time.monotonic
    stalled: float = 0.0
    """Seconds the loop has waited for checkpoints so far."""
    _writing: Future[None] | None = field(default=None, repr=False)

    def steps(self) -> list[int]:
        """See ``Checkpointer``, as for all methods here."""
        jobs = [self.job, *map(self._of, range(len(self.ends)))]
        there = {step for job in jobs for step in checkpoint_steps(job.store, job.prefix)}
        # that of the end always, so that it is missed where it is gone
        return sorted(there.union(self.ends[-1:]), reverse=True)

    def read(self, step: int) -> Saved:
        job = self._of(bisect_left(self.ends, step))
        return read_checkpoint(job.store, step, prefix=job.prefix, get=job.plain.get)

    def drop(self, step: int) -> bool:
        if self._is_before(step):
            return False
        self.job.plain.drop(self._key(step))
        return True

    @property
    def way_out(self) -> str:
        return "take another output folder" if self.ends else "delete them all to begin anew"

    def is_due(self, step: int) -> bool:
        return not self._is_before(step) and (step % self.every == 0 or step == self.last)

    def save(self, state: TrainingState) -> None:
        begun = self.clock()
        self._wait()
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in state.tensors().items()}
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = pool.submit(self._write, state.step, tensors, state.facts())
        pool.shutdown(wait=False)
        self.stalled += self.clock() - begun

    def close(self) -> None:
        if self._writing is not None:
            self._writing.exception()

    def finish(self) -> None:
        begun = self.clock()
        self._wait()
        self.stalled += self.clock() - begun
        self._prune()  # an earlier start may have been killed before it did
        self.job.plain.adopt(checkpoint_names(self.job.prefix))

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, tensors: dict[str, torch.Tensor], facts: CheckpointFacts) -> None:
        key = self._key(step)
        self.job.put_plain(key, checkpoint_bytes(tensors, facts), computed=True)
        # The older ones go only once the new one has been read back: killed between, the run has one too
        # many, never none.
        if self.job.store.sha256(key) != self.job.plain.sha256(key):
            where = self.job.store.where(key)
            raise Damaged(f"{where} is not what was written a moment ago: check the storage")
        self._prune()

    def _prune(self) -> None:
        for step in checkpoint_steps(self.job.store, self.job.prefix)[: -self.keep]:
            self.drop(step)

    def _key(self, step: int) -> str:
        return checkpoint_key(step, self.job.prefix)

    def _is_before(self, step: int) -> bool:
        """Whether a generation before has made this step."""
        return step <= max(self.ends, default=0)

    def _of(self, generation: int) -> Job:
        """The job of another generation."""
        return replace(self.job, generation=generation)


def checkpoints_due(config: TrainingConfig, steps: int) -> int:
    """Checkpoints that a ``JobCheckpointer`` finds due by the time so many steps are done."""
    last = steps == config.steps and steps % config.checkpoint_every != 0
    return steps // config.checkpoint_every + last
