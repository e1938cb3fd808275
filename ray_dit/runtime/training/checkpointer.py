"""When the state is written, where to, and what is kept; knows nothing of workers or of what is trained."""

from dataclasses import dataclass
from typing import Protocol

from ray_dit.folders.checkpoints import checkpoint_key, checkpoint_steps, prune_checkpoints, read_checkpoint
from ray_dit.formats.checkpoint import checkpoint_bytes
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.state import TrainingState

KEPT = 2
"""Two: where the newest turns out damaged, it can be deleted and the run goes on from the one before."""


class Checkpointer(Protocol):
    """Rank 0 saves and says which checkpoint is the newest; every rank restores."""

    def newest(self) -> int:
        """Step of the newest whole checkpoint, 0 where there is none."""
        ...

    def restore(self, state: TrainingState, step: int) -> None:
        """``state`` becomes the one saved at ``step``; UserError if that is damaged."""
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
    """Checkpoints in the job's folder every so many steps, each written before the next step begins."""

    job: Job
    every: int
    """Steps between checkpoints."""
    last: int
    """The run's last step, which gets one too."""
    keep: int = KEPT

    def newest(self) -> int:
        """See ``Checkpointer``, as for all methods here."""
        return max(checkpoint_steps(self.job.store), default=0)

    def restore(self, state: TrainingState, step: int) -> None:
        state.restore(*read_checkpoint(self.job.store, step))

    def is_due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.last

    def save(self, state: TrainingState) -> None:
        data = checkpoint_bytes(state.tensors(), state.facts())
        self.job.put_plain(checkpoint_key(state.step), data)
        # The older ones go only once the new one is whole: killed between, the run has one too many, never
        # none.
        prune_checkpoints(self.job.store, self.keep)

    def finish(self) -> None:
        prune_checkpoints(self.job.store, self.keep)  # an earlier start may have been killed before it did
