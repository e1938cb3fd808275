"""One worker from start to end: puts the parts together and runs the loop; knows nothing of Ray.

Which data source, parallel wrapper and checkpointer a training has is decided here and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ray_dit.config import TrainingConfig
from ray_dit.core.flops import peak_flops
from ray_dit.errors import Damaged, NotFound, UserError
from ray_dit.folders.checkpoints import Checkpoint, parse_name
from ray_dit.formats.loss_curve import width
from ray_dit.formats.worker_history import History, in_words, with_start
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.board import Progress, Reporter
from ray_dit.runtime.training.checkpointer import Checkpointer, JobCheckpointer, Saved
from ray_dit.runtime.training.data import StepBatches
from ray_dit.runtime.training.loop import train_steps
from ray_dit.runtime.training.memory import explains_memory
from ray_dit.runtime.training.parallel import Parallel
from ray_dit.runtime.training.restoring import finished_training
from ray_dit.runtime.training.speed import Work
from ray_dit.runtime.training.state import TrainingState
from ray_dit.runtime.training.task import Batch, Task


@explains_memory
def train_worker(
    task: Task[Batch],
    config: TrainingConfig,
    job: Job,
    *,
    device: torch.device,
    parallel: Parallel,
    show: Callable[[Progress], None],
    tell: Callable[[str], None] = lambda note: None,
    ends: tuple[int, ...] = (),
) -> None:
    """Trains ``task`` to ``config.steps``, from the newest checkpoint in the job's folder where there is one.

    Every worker calls it; the first also writes checkpoints and the result, and tells ``show`` how far it is
    and ``tell`` what the user should know. ``ends``: the last steps of the generations that ``job`` extends.
    """
    model = task.setup(device)
    state = TrainingState.initial(model, task.optimizer, task.ema_decay, width(task.t_ranges))
    finished = finished_training(job)
    checkpointer = JobCheckpointer(
        job,
        every=config.checkpoint_every,
        last=config.steps,
        keep=config.keep_last,
        keep_every=config.keep_every,
        listed=finished.keys if finished else None,
        ends=ends,
    )
    resume(state, checkpointer, parallel, tell)
    if state.step < config.steps:
        state.history = history_of_start(state, parallel, finished.history if finished else None)
    data = StepBatches(
        task, config.batch_size, parallel.rank, parallel.world_size, parts=config.batches_per_step
    )
    report = Reporter(
        show,
        begin=state.step,
        lost=lambda: (data.waited, checkpointer.stalled),
        t_ranges=task.t_ranges,
        work=work_of(task, config, device, parallel.world_size) if parallel.rank == 0 else None,
        told=len(state.log),
    )
    if parallel.rank == 0:
        report(state, now=True)
    try:
        train_steps(
            state,
            task,
            config,
            job,
            data=data,
            parallel=parallel,
            checkpointer=checkpointer,
            report=report,
        )
    except BaseException:
        checkpointer.close()  # or what is half written would be lost with this process
        raise
    if parallel.rank == 0:
        finish(state, task, job, checkpointer, tell)
        report(state, now=True)


def finish(
    state: TrainingState,
    task: Task[Batch],
    job: Job,
    checkpointer: Checkpointer,
    tell: Callable[[str], None],
) -> None:
    """Ends the run and writes its result, unless one of another worker history has come first."""
    finished = finished_training(job)
    if finished is not None and finished.history != state.history and not job.repairing:
        checkpointer.finish(finished.history, finished.keys)
        winners = in_words(finished.history) or "an earlier version"
        tell(f"another run has finished this training meanwhile, with {winners}: its result stays")
        return
    checkpointer.finish(state.history)
    with state.averaged() as averaged:
        task.finish(averaged, np.array(state.log), job, state.history)


def history_of_start(state: TrainingState, parallel: Parallel, finished: History | None) -> History:
    """The worker history from this start's first step on.

    UserError where a finished training is to be made again and these workers would come to other bits than
    those of its history, ``finished``.
    """
    kinds = parallel.tell(parallel.kind(), state.device)
    ours = with_start(state.history, state.step, parallel.world_size, kinds)
    if finished is None or ours == finished:
        return ours
    if not finished:
        return finished  # of a version that noted none
    raise UserError(
        f"what is damaged can't be made again by {in_words(ours)}, as the finished training is one by "
        f"{in_words(finished)}: run it with those, restore its newest checkpoint from a copy, or take "
        "another output folder"
    )


def work_of(task: Task[Any], config: TrainingConfig, device: torch.device, workers: int) -> Work:
    """What a step takes; the peak is that of ``workers`` devices like this one."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_flops(name, bfloat16=config.precision == "bfloat16", tf32=config.tf32)
    return Work(config.batch_size, task.flops(), None if peak is None else peak * workers)


def resume(
    state: TrainingState,
    checkpointer: Checkpointer,
    parallel: Parallel,
    tell: Callable[[str], None] = lambda note: None,
) -> None:
    """Goes on from the newest checkpoint that is whole; rank 0 deletes newer, damaged ones and tells which.

    Rank 0 says which there are: another worker may list the folder a moment later. UserError where all are
    damaged: to begin anew is for the user to decide.
    """
    rank_0 = parallel.rank == 0
    left = iter(checkpointer.found() if rank_0 else ())
    damaged: dict[Checkpoint, str] = {}
    while True:
        mine = next(left, None)
        checkpoint = parse_name(parallel.tell(mine.name if mine else "", state.device)[0])
        if checkpoint is None:
            break
        saved, reason = _read(checkpointer, checkpoint)
        # one that any worker can't read is left by all: they must go on from the same state
        if parallel.mean(torch.tensor(float(saved is None), device=state.device)) == 0:
            assert saved is not None, "all workers have read it"
            state.restore(*saved)
            break
        damaged[checkpoint] = reason
    if damaged and checkpoint is None:
        newest = next(iter(damaged.values()))
        raise UserError(
            f"none of the {len(damaged)} checkpoints is whole ({newest}): restore one from a copy, or "
            f"{checkpointer.way_out}"
        )
    for newer in damaged if rank_0 else ():
        tell(f"the checkpoint of step {newer.step} {_outcome(newer, checkpointer, state.step)}")


def _outcome(damaged: Checkpoint, checkpointer: Checkpointer, step: int) -> str:
    """What comes of a damaged checkpoint, which is deleted where it is the run's own."""
    is_dropped = checkpointer.drop(damaged)
    if damaged.sum:
        return f"was damaged, so the training goes on from that of step {step}"
    if is_dropped:
        return f"was damaged and is made anew, from that of step {step} on"
    return f"is gone or damaged, so the training goes on from that of step {step}, to the same result"


def _read(checkpointer: Checkpointer, checkpoint: Checkpoint) -> tuple[Saved | None, str]:
    """A checkpoint, or None and what is wrong with it."""
    try:
        return checkpointer.read(checkpoint), ""
    except (Damaged, NotFound) as error:
        return None, str(error)
