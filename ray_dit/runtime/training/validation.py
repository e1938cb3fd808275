"""The loss on held-out samples, with the averaged weights; knows nothing of which samples those are.

The first worker computes it alone, while the others wait for it in their next step: so it is the same number
whatever their count, and it is so little work that sharing it would save nothing that shows.
"""

import itertools
import math

import torch

from ray_dit.runtime.training.state import TrainingState
from ray_dit.runtime.training.step import Passes
from ray_dit.runtime.training.task import Batch


def validation_loss(state: TrainingState, passes: Passes[Batch], size: int) -> float:
    """The mean loss, in batches of at most ``size``; NaN where the task has none due after this step."""
    batches = iter(passes.task.heldout(state.step, size))
    first = next(batches, None)
    if first is None:
        return math.nan
    with state.averaged() as model:
        losses = [passes.losses(model, batch).double() for batch in itertools.chain([first], batches)]
    return float(torch.cat(losses).mean())
