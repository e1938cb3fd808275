"""When the state is written, where to, and what is kept; knows nothing of workers or of what is trained."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ray_dit.config import TrainingConfig
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
        """Saves the state.

        The next step may change its tensors at once, so a saver that works on copies them first.
        """
        ...

    def finish(self) -> None:
        """Ends the run: returns when everything saved is written and only what shall stay is there."""
        ...


@dataclass(frozen=True)
class JobCheckpointer:
    """Checkpoints in the job's folder every so many steps, each written before the next step begins.

    An extension goes on from those of the generations before, and leaves them as they are.
    """

    job: Job
    every: int
    """Steps between checkpoints."""
    last: int
    """The run's last step, which gets one too."""
    keep: int = KEPT
    ends: tuple[int, ...] = ()
    """The last steps of the generations before."""

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
        data = checkpoint_bytes(state.tensors(), state.facts())
        self.job.put_plain(self._key(state.step), data, computed=True)
        # The older ones go only once the new one is whole: killed between, the run has one too many, never
        # none.
        self._prune()

    def finish(self) -> None:
        self._prune()  # an earlier start may have been killed before it did
        self.job.plain.adopt(checkpoint_names(self.job.prefix))

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
