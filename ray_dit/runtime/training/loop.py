"""The training loop: what happens in a step, and why in this order.

Knows nothing of Ray or of what is trained.

The learning rate, the optimizer and the average are in ``core/train_step.py``.
"""

from collections.abc import Callable

import torch

from ray_dit.config import TrainingConfig
from ray_dit.core.train_step import clip_gradients, ema_decay, gradient_norm, learning_rate, update_ema
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.checkpointer import Checkpointer
from ray_dit.runtime.training.data import DataSource
from ray_dit.runtime.training.parallel import Parallel
from ray_dit.runtime.training.state import TrainingState, trained_parameters
from ray_dit.runtime.training.step import Passes
from ray_dit.runtime.training.task import Batch, Task
from ray_dit.runtime.training.watch import Watch


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

    Rank 0 saves what ``checkpointer`` finds due and reports. Diverged where a loss or a gradient is not
    finite, before anything is saved that was made of it.
    """
    if state.step >= config.steps:
        return
    passes = Passes(task, state.model, parallel, config)
    passes.settle(lambda: next(iter(data.batches(0, 1)))[0])
    watch = Watch(state.device)
    # Summed where the losses are: bringing each step's to the CPU would make it wait for the accelerator. The
    # sum is no part of a checkpoint: checkpoint_every is a multiple of log_every, so it is zero there.
    loss_sum = torch.zeros((), dtype=torch.float64, device=state.device)
    summed = 0
    for batches in data.batches(state.step, config.steps):
        # Set before each step, a function of it: the optimizer's own state knows nothing of the schedule.
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(task.optimizer, state.step, config.steps)
        loss = passes.gradients(batches)
        norm = gradient_norm(state.model)  # of the workers' mean, so that all clip by the same
        watch.see(state.step, loss, norm)
        if task.optimizer.grad_clip is not None:
            clip_gradients(state.model, norm, task.optimizer.grad_clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None and task.ema_decay is not None:
            # Of the weights this step made; the decay counts steps from 0, so before the count goes on.
            update_ema(state.ema, trained_parameters(state.model), ema_decay(state.step, task.ema_decay))
        state.step += 1

        loss_sum += loss.double()
        summed += 1
        if state.step % config.log_every == 0 or state.step in (config.steps, *checkpointer.ends):
            # On every worker, as taking the mean needs all; and before the checkpoint, which holds this
            # point. Where a run ended its curve has a point, and so has that of its extension.
            mean = parallel.mean(loss_sum / summed)
            watch.check(state.step, mean)
            state.log.append((float(state.step), mean))
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
