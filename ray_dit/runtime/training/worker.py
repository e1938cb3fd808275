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
from ray_dit.formats.loss_curve import width
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.board import Progress, Reporter
from ray_dit.runtime.training.checkpointer import Checkpointer, JobCheckpointer, Saved
from ray_dit.runtime.training.data import StepBatches
from ray_dit.runtime.training.loop import train_steps
from ray_dit.runtime.training.memory import explains_memory
from ray_dit.runtime.training.parallel import Parallel
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
    model = task.setup(device, parallel.is_local_first)
    state = TrainingState.initial(model, task.optimizer, task.ema_decay, width(task.t_ranges))
    checkpointer = JobCheckpointer(job, every=config.checkpoint_every, last=config.steps, ends=ends)
    resume(state, checkpointer, parallel, tell)
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
        checkpointer.finish()
        report(state, now=True)
        with state.averaged() as averaged:
            task.finish(averaged, np.array(state.log), job)


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
    left = iter(checkpointer.steps() if rank_0 else ())
    damaged: dict[int, str] = {}
    while step := parallel.agree(next(left, 0), state.device):
        saved, reason = _read(checkpointer, step)
        # one that any worker can't read is left by all: they must go on from the same state
        if parallel.mean(torch.tensor(float(saved is None), device=state.device)) == 0:
            break
        damaged[step] = reason
    else:
        if damaged:
            newest = damaged[max(damaged)]
            raise UserError(
                f"none of the {len(damaged)} checkpoints is whole ({newest}): restore one from a copy, or "
                f"{checkpointer.way_out}"
            )
        return
    assert saved is not None, "all workers have read it"
    state.restore(*saved)
    for newer in damaged if rank_0 else ():
        if checkpointer.drop(newer):
            tell(f"the checkpoint of step {newer} was damaged and is made anew, from that of step {step} on")
        else:
            tell(
                f"the checkpoint of step {newer} is gone or damaged, so the training goes on from that of "
                f"step {step}, to the same result"
            )


def _read(checkpointer: Checkpointer, step: int) -> tuple[Saved | None, str]:
    """A checkpoint, or None and what is wrong with it."""
    try:
        return checkpointer.read(step), ""
    except (Damaged, NotFound) as error:
        return None, str(error)
