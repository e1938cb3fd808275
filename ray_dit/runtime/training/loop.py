"""The training loop: what happens in a step, and why in this order.

Knows nothing of Ray or of what is trained.

The learning rate, the optimizer and the average are in ``core/train_step.py``.
"""

import math
from collections.abc import Callable

from ray_dit.config import TrainingConfig
from ray_dit.core.train_step import clip_gradients, ema_decay, gradient_norm, learning_rate, update_ema
from ray_dit.formats.worker_history import keyed
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.checkpointer import Checkpointer
from ray_dit.runtime.training.curve import Sums
from ray_dit.runtime.training.data import DataSource
from ray_dit.runtime.training.parallel import Parallel
from ray_dit.runtime.training.state import TrainingState, trained_parameters
from ray_dit.runtime.training.step import Passes
from ray_dit.runtime.training.task import Batch, Task
from ray_dit.runtime.training.validation import validation_loss
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
    sums = Sums(len(task.t_ranges), state.device)
    passes = Passes(task, state.model, parallel, config, sums.add_samples)
    passes.settle(lambda: next(iter(data.batches(0, 1)))[0])
    watch = Watch(state.device)
    judged_at_once = config.batch_size // (parallel.world_size * config.batches_per_step)
    noticed = False
    for batches in data.batches(state.step, config.steps):
        # Set before each step, a function of it: the optimizer's own state knows nothing of the schedule.
        rate = learning_rate(task.optimizer, state.step, config.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
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

        sums.add_step(loss, norm)
        is_new = False
        if state.step % config.log_every == 0 or state.step in (config.steps, *checkpointer.ends):
            # On every worker, as taking the mean needs all; and before the checkpoint, which holds this
            # point. Where a run ended its curve has a point, and so has that of its extension.
            mean, mean_norm, by_t = sums.take(parallel)
            watch.check(state.step, mean)
            judged = math.nan if parallel.rank else validation_loss(state, passes, judged_at_once)
            state.log.append((float(state.step), mean, mean_norm, rate, judged, *by_t))
            # Here, where the sums are zero, so that the state is whole; once for each notice.
            before, noticed = noticed, parallel.notice()
            is_new = noticed and not before
        if parallel.rank == 0:
            report(state)
            if checkpointer.is_due(state.step):
                # Samples first: a run that goes on from the checkpoint never makes this step's again.
                write_samples(state, task, job)
                checkpointer.save(state)
            elif is_new:
                checkpointer.save(state, passing=True)


def write_samples(state: TrainingState, task: Task[Batch], job: Job) -> None:
    """What the task shows of its model at a checkpoint, made with the averaged weights."""
    with state.averaged() as model:
        for key, data in task.at_checkpoint(model, state.step).items():
            job.put_plain(keyed(key, state.history), data, computed=True)
