"""One worker from start to end: puts the parts together and runs the loop; knows nothing of Ray.

Which data source, parallel wrapper and checkpointer a training has is decided here and nowhere else.
"""

from collections.abc import Callable

import numpy as np
import torch

from ray_dit.config import TrainingConfig
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.board import Progress, Reporter
from ray_dit.runtime.training.checkpointer import Checkpointer, JobCheckpointer
from ray_dit.runtime.training.data import StepBatches
from ray_dit.runtime.training.loop import train_steps
from ray_dit.runtime.training.parallel import Parallel
from ray_dit.runtime.training.state import TrainingState
from ray_dit.runtime.training.task import Batch, Task


def train_worker(
    task: Task[Batch],
    config: TrainingConfig,
    job: Job,
    *,
    device: torch.device,
    parallel: Parallel,
    show: Callable[[Progress], None],
) -> None:
    """Trains ``task`` to ``config.steps``, from the newest checkpoint in the job's folder where there is one.

    Every worker calls it; the first also writes checkpoints and the result, and tells ``show`` how far it is.
    """
    model = task.setup(device, parallel.is_local_first)
    state = TrainingState.initial(model, task.optimizer, task.ema_decay)
    checkpointer = JobCheckpointer(job, every=config.checkpoint_every, last=config.steps)
    resume(state, checkpointer, parallel)
    report = Reporter(show, begin=state.step)
    if parallel.rank == 0:
        report(state, now=True)
    train_steps(
        state,
        task,
        config,
        job,
        data=StepBatches(task.batch, config.batch_size, parallel.rank, parallel.world_size),
        parallel=parallel,
        checkpointer=checkpointer,
        report=report,
    )
    if parallel.rank == 0:
        report(state, now=True)
        checkpointer.finish()
        with state.averaged() as averaged:
            task.finish(averaged, np.array(state.log), job)


def resume(state: TrainingState, checkpointer: Checkpointer, parallel: Parallel) -> None:
    """Goes on from the newest checkpoint.

    Rank 0 says which that is: another worker may list the folder a moment later.
    """
    step = parallel.agree(checkpointer.newest() if parallel.rank == 0 else 0, state.device)
    if step:
        checkpointer.restore(state, step)
