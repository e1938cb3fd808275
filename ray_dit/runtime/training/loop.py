"""The training loop: what happens in a step, and why in this order.

Knows nothing of Ray or of what is trained.

The learning rate, the optimizer and the average are in ``core/train_step.py``.
"""

from collections.abc import Callable

import torch
from torch import nn

from ray_dit.config import TrainingConfig
from ray_dit.core.train_step import ema_decay, learning_rate, update_ema
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.checkpointer import Checkpointer
from ray_dit.runtime.training.data import DataSource
from ray_dit.runtime.training.parallel import Parallel
from ray_dit.runtime.training.state import TrainingState, trained_parameters
from ray_dit.runtime.training.task import Batch, Task


def train_steps(
    state: TrainingState,
    task: Task[Batch],
    config: TrainingConfig,
    job: Job,
    *,
    data: DataSource[Batch],
    parallel: Parallel,
    checkpointer: Checkpointer,
    report: Callable[[TrainingState], None],
) -> None:
    """Takes ``state`` from its step to ``config.steps``.

    Rank 0 saves what ``checkpointer`` finds due and reports.
    """
    if state.step >= config.steps:
        return
    model = parallel.wrap(state.model)
    parallel.settle(model, lambda: task.losses(model, next(iter(data.batches(0, 1)))).mean())
    # Summed where the losses are: bringing each step's to the CPU would make it wait for the accelerator. The
    # sum is no part of a checkpoint: checkpoint_every is a multiple of log_every, so it is zero there.
    loss_sum = torch.zeros((), dtype=torch.float64, device=state.device)
    summed = 0
    for batch in data.batches(state.step, config.steps):
        # Set before each step, a function of it: the optimizer's own state knows nothing of the schedule.
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(task.optimizer, state.step, config.steps)
        loss = task.losses(model, batch).mean()
        loss.backward()  # here the workers' gradients become their mean
        if task.optimizer.grad_clip is not None:
            # After that, so that all workers clip by the norm of the same gradient.
            nn.utils.clip_grad_norm_(state.model.parameters(), task.optimizer.grad_clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None and task.ema_decay is not None:
            # Of the weights this step made; the decay counts steps from 0, so before the count goes on.
            update_ema(state.ema, trained_parameters(state.model), ema_decay(state.step, task.ema_decay))
        state.step += 1

        loss_sum += loss.detach().double()
        summed += 1
        if state.step % config.log_every == 0 or state.step in (config.steps, *checkpointer.ends):
            # On every worker, as taking the mean needs all; and before the checkpoint, which holds this
            # point. Where a run ended its curve has a point, and so has that of its extension.
            state.log.append((float(state.step), parallel.mean(loss_sum / summed)))
            loss_sum.zero_()
            summed = 0
        if parallel.rank == 0:
            report(state)
            if checkpointer.is_due(state.step):
                # Samples first: a run that goes on from the checkpoint never makes this step's again.
                write_samples(state, task, job)
                checkpointer.save(state)


def write_samples(state: TrainingState, task: Task[Batch], job: Job) -> None:
    """What the task shows of its model at a checkpoint, made with the averaged weights."""
    with state.averaged() as model:
        for key, data in task.at_checkpoint(model, state.step).items():
            job.put_plain(key, data, computed=True)
