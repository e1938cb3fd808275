"""When the state is written, where to, and what is kept; knows nothing of workers or of what is trained."""

from dataclasses import dataclass
from typing import Protocol

import torch

from ray_dit.config import TrainingConfig
from ray_dit.folders.checkpoints import FOLDER, checkpoint_key, checkpoint_steps, read_checkpoint
from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.state import TrainingState

KEPT = 2
"""Two: where the newest turns out damaged, the run goes on from the one before."""

Saved = tuple[dict[str, torch.Tensor], CheckpointFacts]
"""What a ``TrainingState`` is restored from."""


class Checkpointer(Protocol):
    """Rank 0 saves and says which checkpoints there are; every rank reads."""

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, the newest first."""
        ...

    def read(self, step: int) -> Saved:
        """The state saved at ``step``; Damaged if it is not what was written."""
        ...

    def drop(self, step: int) -> None:
        """Deletes a damaged checkpoint, so that the run writes it anew."""
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

    def steps(self) -> list[int]:
        """See ``Checkpointer``, as for all methods here."""
        return checkpoint_steps(self.job.store)[::-1]

    def read(self, step: int) -> Saved:
        return read_checkpoint(self.job.store, step, get=self.job.plain.get)

    def drop(self, step: int) -> None:
        self.job.plain.drop(checkpoint_key(step))

    def is_due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.last

    def save(self, state: TrainingState) -> None:
        data = checkpoint_bytes(state.tensors(), state.facts())
        self.job.put_plain(checkpoint_key(state.step), data, computed=True)
        # The older ones go only once the new one is whole: killed between, the run has one too many, never
        # none.
        self._prune()

    def finish(self) -> None:
        self._prune()  # an earlier start may have been killed before it did
        self.job.plain.adopt(f"{FOLDER}/")

    def _prune(self) -> None:
        for step in checkpoint_steps(self.job.store)[: -self.keep]:
            self.drop(step)


def checkpoints_due(config: TrainingConfig, steps: int) -> int:
    """Checkpoints that a ``JobCheckpointer`` finds due by the time so many steps are done."""
    last = steps == config.steps and steps % config.checkpoint_every != 0
    return steps // config.checkpoint_every + last
