"""The training loop both trainings share: Ray Train starts the workers, DDP averages their gradients.

Global batch s is sample positions [s·B, (s+1)·B); a rank takes its slice. What a position means (row, noise, time step)
is the trainee's business and a pure function, so the whole state of a run is its tensors and the step. A checkpoint
holds that state; a run that finds one goes on from it and ends in the same bits as one that was never disturbed, for
the same number of workers on the same machine kind.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_dit.config import OptimizerConfig, TrainingConfig
from ray_dit.core.train_step import ema_decay, learning_rate, make_optimizer, update_ema
from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import checkpoint_key, checkpoint_steps, prune_checkpoints, read_checkpoint
from ray_dit.formats.checkpoint import checkpoint_bytes, with_prefix
from ray_dit.ledger.job import Job
from ray_dit.session import check_resources
from ray_dit.stages.progress import progress

KEEP_CHECKPOINTS = 2
MAX_WORKER_FAILURES = 3


class Trainee(Protocol):
    """What a training stage hands to the loop; pickled to the workers, where ``setup`` comes first."""

    optimizer: OptimizerConfig
    ema_decay: float | None
    """Largest decay of the averaged weights; None trains without."""

    def setup(self, device: torch.device, is_local_first: bool) -> nn.Module:
        """Opens the data and builds the model with its initial weights, the same on every rank."""
        ...

    def losses(self, model: nn.Module, positions: NDArray[np.int64]) -> torch.Tensor:
        """Loss [B] of the samples at these global positions."""
        ...

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        """Objects to write beside the checkpoint of ``step`` (sample pictures); ``model`` has the averaged weights."""
        ...

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job) -> None:
        """Writes the result; ``model`` has the averaged weights, ``log`` rows are (step, mean loss)."""
        ...


def run_training(ray: Any, config: TrainingConfig, job: Job, trainee: Trainee, what: str) -> None:
    """Trains to ``config.steps`` on Ray Train workers, resuming from the newest checkpoint in the job's folder."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    workers = config.num_workers
    check_resources(ray, config, cpus=workers * config.threads, gpus=workers if config.use_gpu else 0)
    board = ray.remote(num_cpus=0)(Board).remote()
    run = job.run(
        {"what": what, "num_workers": config.num_workers, "device": "gpu" if config.use_gpu else "cpu"}
    )
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config, "job": job, "trainee": trainee, "board": board},
        scaling_config=ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=_resources(config)
        ),
        run_config=RunConfig(
            name=run.id,
            failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            **_ray_storage(job),
        ),
    )
    with _watched(ray, board, config, what):
        try:
            trainer.fit()
        except Exception as error:
            _raise_user_error(ray, board)
            raise RuntimeError(
                f"training failed after {MAX_WORKER_FAILURES} restarts of its workers"
            ) from error
    _raise_user_error(ray, board)
    state = ray.get(board.read.remote())
    steps = state["done"] - state["begin"]
    run.end(steps=steps, samples=steps * config.batch_size)


class Board:
    """A tiny actor the workers write their progress on."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {"begin": 0, "done": 0, "loss": None, "error": None}

    def write(self, **fields: Any) -> None:
        self._state |= fields

    def read(self) -> dict[str, Any]:
        return self._state


@dataclass
class _State:
    """All that a checkpoint holds."""

    model: nn.Module
    ema: dict[str, torch.Tensor] | None
    optimizer: torch.optim.Optimizer
    step: int = 0
    log: list[tuple[float, float]] = field(default_factory=lambda: [])

    def tensors(self) -> dict[str, torch.Tensor]:
        named = _trainable(self.model)
        tensors = {f"model.{name}": value for name, value in named.items()}
        tensors |= {f"ema.{name}": value for name, value in (self.ema or {}).items()}
        for name, parameter in named.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["log"] = torch.tensor(self.log, dtype=torch.float64).reshape(-1, 2)
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        named = _trainable(self.model)
        with torch.no_grad():
            for name, value in with_prefix("model", tensors):
                named[name].copy_(value)
            for name, value in with_prefix("ema", tensors):
                if self.ema is not None:
                    self.ema[name].copy_(value)
        for name, value in with_prefix("optimizer", tensors):
            parameter, key = name.rsplit(".", 1)
            target = named[parameter]
            on = value if key == "step" else value.to(target.device)
            self.optimizer.state[target][key] = on
        self.log = [(row[0], row[1]) for row in tensors["log"].tolist()]
        self.step = int(facts["step"])


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _worker(arguments: dict[str, Any]) -> None:
    """A Ray Train worker: sets up, trains, and lets rank 0 write. Users' errors go to the board, not to a retry."""
    import ray
    from ray.train import get_context

    board = arguments["board"]
    try:
        train_worker(arguments["config"], arguments["job"], arguments["trainee"], board, get_context())
    except UserError as error:
        ray.get(board.write.remote(error=str(error)))


def train_worker(config: TrainingConfig, job: Job, trainee: Trainee, board: Any, context: Any) -> None:
    """What one worker does from start to end; ``context`` tells its rank as Ray Train's does."""
    device = _prepare_process(config)
    model = trainee.setup(device, context.get_local_rank() == 0)
    state = _State(
        model, _copy_weights(model) if trainee.ema_decay else None, make_optimizer(model, trainee.optimizer)
    )
    rank, world = context.get_world_rank(), context.get_world_size()
    _resume(state, job, rank, world)
    if rank == 0:
        board.write.remote(begin=state.step, done=state.step)
    _steps(state, config, trainee, job, board, rank, world)
    if rank == 0:
        prune_checkpoints(job.store, KEEP_CHECKPOINTS)
        with _averaged(state):
            trainee.finish(state.model, np.array(state.log), job)


def _prepare_process(config: TrainingConfig) -> torch.device:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    if not config.use_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def _resume(state: _State, job: Job, rank: int, world: int) -> None:
    """Loads the newest checkpoint; rank 0 says which, so that all ranks load the same."""
    steps = checkpoint_steps(job.store) if rank == 0 else []
    newest = torch.tensor([steps[-1] if steps else 0], device=next(state.model.parameters()).device)
    if world > 1:
        torch.distributed.broadcast(newest, src=0)
    if int(newest):
        state.restore(*read_checkpoint(job.store, int(newest)))


def _steps(
    state: _State, config: TrainingConfig, trainee: Trainee, job: Job, board: Any, rank: int, world: int
) -> None:
    model = _wrap(state.model, world)
    share = config.batch_size // world
    device = next(state.model.parameters()).device
    if world > 2 and state.step < config.steps:
        _settle_buckets(model, trainee, share)
    since_log = torch.zeros((), dtype=torch.float64, device=device)
    logged, shown = state.step, time.monotonic()
    while state.step < config.steps:
        first = state.step * config.batch_size + rank * share
        since_log += _step(state, model, trainee, config, np.arange(first, first + share))
        state.step += 1
        if state.step % config.log_every == 0 or state.step == config.steps:
            mean = _mean_over_ranks(since_log / (state.step - logged), world)
            state.log.append((float(state.step), mean))
            since_log.zero_()
            logged = state.step
        if rank == 0 and time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            board.write.remote(done=state.step, loss=state.log[-1] if state.log else None)
        if rank == 0 and (state.step % config.checkpoint_every == 0 or state.step == config.steps):
            _save(state, trainee, job)
    if rank == 0:
        board.write.remote(done=state.step)


def _step(
    state: _State, model: nn.Module, trainee: Trainee, config: TrainingConfig, positions: NDArray[np.int64]
) -> torch.Tensor:
    """One optimizer step; returns this rank's mean loss, not yet brought to the CPU."""
    optimizer = trainee.optimizer
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(optimizer, state.step, config.steps)
    loss = trainee.losses(model, positions).mean()
    loss.backward()
    if optimizer.grad_clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), optimizer.grad_clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None and trainee.ema_decay is not None:
        update_ema(state.ema, _trainable(state.model), ema_decay(state.step, trainee.ema_decay))
    return loss.detach().double()


def _wrap(model: nn.Module, world: int) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model) if world > 1 else model


def _settle_buckets(model: nn.Module, trainee: Trainee, share: int) -> None:
    """One backward pass for nothing: DDP regroups its buckets after the first one, and with more than two ranks the
    grouping decides the order of sums. So every start, fresh or resumed, begins with the final grouping."""
    trainee.losses(model, np.arange(share)).mean().backward()
    model.zero_grad(set_to_none=True)


def _mean_over_ranks(value: torch.Tensor, world: int) -> float:
    if world > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= world
    return float(value)


def _save(state: _State, trainee: Trainee, job: Job) -> None:
    """Pictures first, the checkpoint after: where a checkpoint is, everything up to its step is."""
    with _averaged(state):
        for key, data in trainee.at_checkpoint(state.model, state.step).items():
            job.put_plain(key, data)
    job.put_plain(checkpoint_key(state.step), checkpoint_bytes(state.tensors(), {"step": state.step}))
    prune_checkpoints(job.store, KEEP_CHECKPOINTS)


@contextlib.contextmanager
def _averaged(state: _State) -> Any:
    """The model with its averaged weights in place of the trained ones, in evaluation mode."""
    kept = None if state.ema is None else _copy_weights(state.model)
    state.model.eval()
    try:
        if state.ema is not None:
            _put_weights(state.model, state.ema)
        with torch.no_grad():
            yield
    finally:
        if kept is not None:
            _put_weights(state.model, kept)
        state.model.train()


def _copy_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in _trainable(model).items()}


def _put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in _trainable(model).items():
            value.copy_(weights[name])


def _resources(config: TrainingConfig) -> dict[str, float]:
    return {"CPU": float(config.threads)} | ({"GPU": 1.0} if config.use_gpu else {})


def _ray_storage(job: Job) -> dict[str, Any]:
    """Ray Train's own notes go to the run folder, which every node reaches; our checkpoints do not pass through it."""
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


@contextlib.contextmanager
def _watched(ray: Any, board: Any, config: TrainingConfig, what: str) -> Any:
    """Shows the board's progress from a thread while the trainer blocks."""
    import threading

    stop = threading.Event()

    curve = _tensorboard(config)

    def watch() -> None:
        bar = None
        with contextlib.ExitStack() as stack:
            while True:
                ended = stop.wait(0.5)
                state = ray.get(board.read.remote())
                if bar is None and (state["done"] or ended):
                    bar = stack.enter_context(progress(what, config.steps, "steps", done=state["begin"]))
                if bar is not None:
                    bar(state["done"], f"loss {state['loss'][1]:.4f}" if state["loss"] else "")
                if curve is not None and state["loss"]:
                    curve.add_scalar("loss", state["loss"][1], int(state["loss"][0]))
                if ended:
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _tensorboard(config: TrainingConfig) -> Any:
    """A writer of TensorBoard's event files where one is asked for."""
    if config.tensorboard is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install 'ray-dit[tensorboard]'"
        ) from error
    return SummaryWriter(config.tensorboard)


def _raise_user_error(ray: Any, board: Any) -> None:
    error = ray.get(board.read.remote())["error"]
    if error:
        raise UserError(error)
