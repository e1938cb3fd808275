"""Ray Train: starts a training's workers, and starts them again after failures.

It is the only part of training that imports ray. Ray is told nothing of checkpoints. They lie in the job's
folder, and every start of the workers, Ray's or the user's, goes on from the newest there.
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch

from ray_dit.config import TrainingConfig
from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import newest_step
from ray_dit.ledger.job import Job
from ray_dit.ledger.runs import RunRecord
from ray_dit.ledger.stored_json import Json
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.session import beside_the_driver, check_resources, interrupted_as_ever
from ray_dit.runtime.training.board import Board, Progress, show_progress
from ray_dit.runtime.training.parallel import Parallel, make_parallel, meeting_at, regroup
from ray_dit.runtime.training.speed import Speed
from ray_dit.runtime.training.task import Task
from ray_dit.runtime.training.worker import train_worker
from ray_dit.storage.proven import trust_settings

MAX_WORKER_FAILURES = 3
"""Restarts of the workers without a new checkpoint. With one they may fail again: a training of weeks loses a
machine every few hours."""
PERMANENT = (ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError, ImportError)
"""What code raises about its data. Kills, networks and accelerators raise others, which may pass."""


@dataclass(frozen=True)
class Intervals:
    """Seconds between two looks at the cluster."""

    resize: float = 60.0
    """Whether it has room for another number of workers."""
    notice: float = 5.0
    """Whether a node will soon be gone: all workers wait for each answer, and Ray itself looks as often."""


def run_training(
    ray: Any,
    config: TrainingConfig,
    job: Job,
    task: Task[Any],
    what: str,
    *,
    ends: tuple[int, ...] = (),
    facts: Mapping[str, Json] | None = None,
    intervals: Intervals = Intervals(),
) -> None:
    """Trains ``task`` to ``config.steps`` on Ray Train workers.

    It goes on from the newest checkpoint in the job's folder. ``what`` names the training in progress and in
    the run's record, which ``facts`` go into too; ``ends`` are the last steps of the generations that ``job``
    extends. UserError for what the user must change, RuntimeError when the workers failed too often between
    two checkpoints, or met an error that another try would meet again.
    """
    fewest, _ = config.worker_range
    check_resources(ray, config, cpus=fewest * config.threads, gpus=fewest if config.use_gpu else 0)
    # Without a CPU of its own: a machine that has just enough for the workers trains. One that is killed
    # begins anew: what was on it is shown again, and an error met again.
    board = beside_the_driver(ray, Board, max_restarts=-1).remote()
    device = "gpu" if config.use_gpu else "cpu"
    run = job.run({"what": what, "num_workers": config.num_workers, "device": device, **(facts or {})})
    arguments = {"config": config, "job": job, "task": task, "board": board, "ends": ends}
    arguments["notice_seconds"] = intervals.notice

    def fit(name: str) -> None:
        _trainer(config, job, name, arguments, intervals.resize).fit()

    record, seen = _Record(run, what), Progress()

    def read() -> Progress:
        nonlocal seen
        with contextlib.suppress(ray.exceptions.RayError):  # the driver meets it too, and says so
            seen = ray.get(board.progress.remote())
        return seen

    shown = show_progress(read, what, config.steps, config.tensorboard, record.tell, record.keep)
    with shown, interrupted_as_ever():
        fit_while_it_advances(fit, run.id, lambda: _raise_final(ray, board), job)
    _raise_final(ray, board)
    progress = read()
    steps = progress.done - progress.begin
    run.end(
        steps=steps,
        samples=steps * config.batch_size,
        data_wait_seconds=round(progress.waited, 3),
        checkpoint_stall_seconds=round(progress.stalled, 3),
        **(record.speed.facts() if record.speed else {}),
    )


def fit_while_it_advances(
    fit: Callable[[str], None], name: str, raise_final: Callable[[], None], job: Job
) -> None:
    """Lets Ray Train run to its end, and again where it gave up but had come to a new checkpoint.

    It counts the failures of the whole training, be they days apart. Each time it has a name of its own.
    """
    newest = newest_step(job.store, job.prefix)
    for turn in count(1):
        try:
            fit(name if turn == 1 else f"{name}-{turn}")
            return
        except Exception as error:
            raise_final()
            before, newest = newest, newest_step(job.store, job.prefix)
            if newest <= before:
                raise RuntimeError(
                    f"training failed after {MAX_WORKER_FAILURES} restarts of its workers, none of which "
                    "came to a new checkpoint"
                ) from error


@dataclass
class _Record:
    """What is written down of a run while it goes on; where storage refuses, or stays silent, it goes on."""

    run: RunRecord
    what: str
    speed: Speed | None = None
    """The newest."""

    def tell(self, note: str) -> None:
        """What the user should know."""
        print(f"{self.what}: {note}", file=sys.stderr)
        self._event("note", cause=note)

    def keep(self, speed: Speed) -> None:
        """How fast it is."""
        self.speed = speed
        self._event("speed", **speed.facts())

    def _event(self, name: str, **facts: Json) -> None:
        with contextlib.suppress(UserError):
            self.run.event(name, **facts)


def _trainer(
    config: TrainingConfig, job: Job, name: str, arguments: dict[str, Any], resize_seconds: float
) -> Any:
    """Ray Train with the workers of the configuration, each of which is given ``arguments``."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": float(config.threads)} | ({"GPU": 1.0} if config.use_gpu else {})
    fewest, most = config.worker_range
    return TorchTrainer(
        _worker,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu=config.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=resize_seconds,
        ),
        run_config=RunConfig(
            name=name,
            failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            **_ray_storage(job),
        ),
    )


def _worker(arguments: dict[str, Any]) -> None:
    """What Ray Train runs on each worker.

    An error that is a function of data or settings goes to the board: trying again would not help. Where
    others wait for this worker it is raised as well, so that Ray Train ends them; what it then starts again
    finds the board's word and ends.
    """
    import ray
    from ray.train import get_context
    from ray.train.torch import get_device

    config, board, context = arguments["config"], arguments["board"], get_context()
    if ray.get(board.is_over.remote()):
        return
    trust_settings()
    set_up_torch(config.threads, tf32=config.tf32)
    rank, there = context.get_world_rank(), context.get_world_size()
    working = config.working(there)
    try:
        if working < there:
            _form_group(rank, working)
        if rank >= working:
            keep_company()
            return
        device = get_device() if config.use_gpu else torch.device("cpu")
        parallel = make_parallel(rank, working)
        notice = Notice(parallel, device, arguments["notice_seconds"], has_idle=working < there)
        train_worker(
            arguments["task"],
            config,
            arguments["job"],
            device=device,
            parallel=replace(parallel, notice=notice),
            show=board.show.remote,
            tell=lambda note: ray.get(board.tell.remote(note)),
            ends=arguments["ends"],
        )
        notice.close()
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        if there > 1:
            raise
    except PERMANENT:
        ray.get(board.crash.remote(traceback.format_exc()))
        if there > 1:
            raise


def _form_group(rank: int, working: int) -> None:
    """Joins the workers that train into a group of their own, where the others take part in nothing."""
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    meeting = broadcast_from_rank_zero(meeting_at(get_node_ip_address()) if rank == 0 else "")
    regroup(meeting, rank, working)


def keep_company() -> None:
    """What an idle worker does until the others are done: Ray Train's questions are asked by all or by none.

    It waits as long as it takes. Where another one fails, Ray Train ends all.
    """
    from ray.train import get_preemption_info
    from ray.train.collective import broadcast_from_rank_zero

    while broadcast_from_rank_zero(None):
        get_preemption_info()


@dataclass
class Notice:
    """Whether a node of the workers will soon be gone, by Ray's word; each asks as often as the others."""

    parallel: Parallel
    device: torch.device
    seconds: float
    """Between two questions."""
    has_idle: bool
    """Whether there are workers that ``keep_company``."""
    _asked: float = field(default_factory=time.monotonic)
    _answer: bool = False

    def __call__(self) -> bool:
        from ray.train import get_preemption_info

        is_time = time.monotonic() - self._asked > self.seconds
        # the first worker's clock decides for all
        if self.parallel.tell("ask" if is_time else "", self.device)[0]:
            self._asked = time.monotonic()
            self._call(True)
            self._answer = get_preemption_info() is not None
        return self._answer

    def close(self) -> None:
        """Lets idle workers go."""
        self._call(False)

    def _call(self, goes_on: bool) -> None:
        from ray.train.collective import broadcast_from_rank_zero

        if self.has_idle:
            broadcast_from_rank_zero(goes_on if self.parallel.rank == 0 else None)


def _raise_final(ray: Any, board: Any) -> None:
    """Raises what a worker has met that another try would meet again."""
    error, trace = ray.get([board.error.remote(), board.trace.remote()])
    if error:
        raise UserError(error)
    if trace:
        raise RuntimeError(f"a worker of the training met an error that would come again:\n{trace}")


def _ray_storage(job: Job) -> dict[str, Any]:
    """Ray Train's own notes go to the run folder, which every node reaches.

    Our checkpoints do not pass through it.
    """
    path = job.store.local_path("_runs/ray_train")
    if path is not None:
        return {"storage_path": str(path.absolute())}
    import fsspec
    import pyarrow.fs

    filesystem, path = fsspec.core.url_to_fs(f"{job.store.uri}/_runs/ray_train")
    return {
        "storage_path": path,
        "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
    }
