"""When the state is written, where to, and what is kept; knows nothing of workers or of what is trained.

A checkpoint is made in two phases: the loop waits while the tensors are copied to the host, and not while
they are written.
"""

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from ray_dit.config import TrainingConfig
from ray_dit.errors import Damaged
from ray_dit.folders.checkpoints import (
    SUM_DIGITS,
    Checkpoint,
    checkpoint_key,
    checkpoints,
    leave_only,
    passing_checkpoints,
    read_checkpoint,
)
from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes
from ray_dit.formats.worker_history import History, history_hash
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.state import TrainingState

Saved = tuple[dict[str, torch.Tensor], CheckpointFacts]
"""What a ``TrainingState`` is restored from."""


class Checkpointer(Protocol):
    """Rank 0 saves and says which checkpoints there are; every rank reads."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The last steps of the generations before; none but in an extension."""
        ...

    def found(self) -> list[Checkpoint]:
        """The checkpoints there are, of whatever worker history, the newest first."""
        ...

    def read(self, checkpoint: Checkpoint) -> Saved:
        """The state that was saved; Damaged if it is not what was written."""
        ...

    def drop(self, checkpoint: Checkpoint) -> bool:
        """Deletes a damaged checkpoint, so that the run writes it anew; False if it is not the run's own."""
        ...

    @property
    def way_out(self) -> str:
        """What to do where none of the checkpoints can be read, but for restoring one."""
        ...

    def is_due(self, step: int) -> bool:
        """Whether the state after ``step`` steps shall be saved."""
        ...

    def save(self, state: TrainingState, *, passing: bool = False) -> None:
        """Begins to save the state, whose tensors may change at once afterwards.

        ``passing``: none is due, but the workers may be gone before one is. It goes when the next one is
        there. What went wrong with the checkpoint before is raised here, or by ``finish``.
        """
        ...

    def close(self) -> None:
        """Returns when nothing is being written any more, however that went: the run has failed elsewhere."""
        ...

    def finish(self, history: History, listed: frozenset[str] | None = None) -> None:
        """Ends the run: returns when everything saved is written and only what shall stay is there.

        Which is some of what belongs to ``history``; ``listed``: keys in the manifest of a run that was
        faster.
        """
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
    keep: int = 2
    """How many of the newest stay: where the newest is damaged, the run goes on from the one before."""
    keep_every: int | None = None
    """Those of its multiples stay too."""
    listed: frozenset[str] | None = None
    """Of a finished training: the keys in its manifest, which decide alone."""
    ends: tuple[int, ...] = ()
    """The last steps of the generations before."""
    clock: Callable[[], float] = time.monotonic
    stalled: float = 0.0
    """Seconds the loop has waited for checkpoints so far."""
    _writing: Future[None] | None = field(default=None, repr=False)

    def found(self) -> list[Checkpoint]:
        """See ``Checkpointer``, as for all methods here."""
        jobs = [self.job, *map(self._of, range(len(self.ends)))]
        there = {found for job in jobs for found in checkpoints(job.store, job.prefix)}
        there.update(passing_checkpoints(self.job.store, self.job.prefix))
        # that of the end always, so that it is missed where it is gone
        ends = {Checkpoint(end) for end in self.ends[-1:] if all(found.step != end for found in there)}
        return sorted(there | ends, key=lambda found: (found.step, not found.sum, found.name), reverse=True)

    def read(self, checkpoint: Checkpoint) -> Saved:
        job = self._of(bisect_left(self.ends, checkpoint.step))
        return read_checkpoint(job.store, checkpoint, prefix=job.prefix, get=job.plain.get)

    def drop(self, checkpoint: Checkpoint) -> bool:
        if self._is_before(checkpoint.step):
            return False
        self.job.plain.drop(checkpoint.key(self.job.prefix))
        return True

    @property
    def way_out(self) -> str:
        return "take another output folder" if self.ends else "delete them all to begin anew"

    def is_due(self, step: int) -> bool:
        return not self._is_before(step) and (step % self.every == 0 or step == self.last)

    def save(self, state: TrainingState, *, passing: bool = False) -> None:
        begun = self.clock()
        self._wait()
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in state.tensors().items()}
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        write = self._write_passing if passing else self._write
        self._writing = pool.submit(write, tensors, state.facts())
        pool.shutdown(wait=False)
        self.stalled += self.clock() - begun

    def close(self) -> None:
        if self._writing is not None:
            self._writing.exception()

    def finish(self, history: History, listed: frozenset[str] | None = None) -> None:
        self.listed = listed or self.listed
        begun = self.clock()
        self._wait()
        self.stalled += self.clock() - begun
        self._prune(history)  # an earlier start may have been killed before it did
        leave_only(self.job, history)
        for passing in passing_checkpoints(self.job.store, self.job.prefix):
            self.drop(passing)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, tensors: dict[str, torch.Tensor], facts: CheckpointFacts) -> None:
        key = checkpoint_key(facts.step, self.job.prefix, facts.history)
        self.job.put_plain(key, checkpoint_bytes(tensors, facts), computed=True)
        # The older ones go only once the new one has been read back: killed between, the run has one too
        # many, never none.
        self._check_back(key, self.job.plain.sha256(key))
        self._prune(facts.history)

    def _write_passing(self, tensors: dict[str, torch.Tensor], facts: CheckpointFacts) -> None:
        data = checkpoint_bytes(tensors, facts)
        sha256 = hashlib.sha256(data).hexdigest()
        passing = Checkpoint(facts.step, history_hash(facts.history), sha256[:SUM_DIGITS])
        key = passing.key(self.job.prefix)
        self.job.store.put(key, data)
        self._check_back(key, sha256)

    def _check_back(self, key: str, sha256: str | None) -> None:
        if self.job.store.sha256(key) != sha256:
            where = self.job.store.where(key)
            raise Damaged(f"{where} is not what was written a moment ago: check the storage")

    def _prune(self, history: History) -> None:
        """Deletes checkpoints that shall not stay; of other worker histories none, which may be running."""
        store, prefix = self.job.store, self.job.prefix
        ours = [found for found in checkpoints(store, prefix) if found.belongs(history)]
        for number, found in enumerate(reversed(ours)):
            if not self._stays(found, number):
                self.drop(found)
        for passing in passing_checkpoints(store, prefix) if ours else ():
            if passing.step <= ours[-1].step:
                self.drop(passing)

    def _stays(self, checkpoint: Checkpoint, number: int) -> bool:
        """``number``: 0 for the newest."""
        if self.listed is not None:
            return not number or checkpoint.key(self.job.prefix) in self.listed
        is_marked = self.keep_every is not None and checkpoint.step % self.keep_every == 0
        return number < self.keep or is_marked

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


def checkpoints_kept(config: TrainingConfig) -> int:
    """How many checkpoints are there at the end."""
    due = [*range(config.checkpoint_every, config.steps, config.checkpoint_every), config.steps]
    every = config.keep_every
    marked = sum(step % every == 0 for step in due[: -config.keep_last]) if every else 0
    return min(config.keep_last, len(due)) + marked
