"""A step of the training loop against a plain one, with nothing but the processor.

``python -m benchmarks.training [--size DiT-S/2] [--batch-size 16] [--threads 2] [--turns 5] [--steps 3]``.
Ours is `ray_dit.runtime.training.loop` on latents in memory, uncompiled and compiled. The peer does what a
published training script does per step, eagerly: a batch of a data loader, the noise and the loss of the same
model, AdamW as torch chooses it, the average of the weights one tensor after the other. *Products* are the
step's matrix products and attention alone, forward and backward: what no loop can save.

Each runs in a process of its own: ours and the products in one that is set up as a worker is, the peer in one
as Python starts it.

Each turn measures all of them, one after the other. Medians and spread go to
``benchmarks/results/training.json``.
"""

import queue
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from benchmarks.common import (
    RESULTS,
    TRIALS,
    argument_parser,
    in_turns,
    machine,
    spread_of_ratios,
    write_json,
)
from benchmarks.dit_options import add_options, shape_of
from benchmarks.own_process import Contender, in_own_processes
from ray_dit.config import DiffusionConfig, DiTConfig, OptimizerConfig, TrainingConfig
from ray_dit.core.batch import TrainingBatch, t_range, t_ranges, training_batch
from ray_dit.core.diffusion import linear_schedule, q_sample
from ray_dit.core.dit import DiT
from ray_dit.core.loss import diffusion_loss
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.pipeline import dit_flops
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.training.checkpointer import JobCheckpointer
from ray_dit.runtime.training.data import StepBatches
from ray_dit.runtime.training.loop import train_steps
from ray_dit.runtime.training.parallel import Alone, Parallel
from ray_dit.runtime.training.state import TrainingState
from ray_dit.storage.open import open_store

CLASSES, ROWS = 1000, 512
SCALE = 0.18215
CPU = torch.device("cpu")


class LatentsTask:
    """What `ray-dit train` does per batch, on latents in memory; a ``Task``."""

    def __init__(self, shape: DiTConfig) -> None:
        self.shape = shape
        self.optimizer = OptimizerConfig()
        self.ema_decay: float | None = 0.9999
        chance = np.random.default_rng(0)
        size = (ROWS, 2 * shape.in_channels, shape.input_size, shape.input_size)
        self.moments = chance.standard_normal(size).astype(np.float16)
        self.labels = torch.from_numpy(chance.integers(0, shape.num_classes, ROWS))
        self.schedule = linear_schedule(DiffusionConfig())

    def setup(self, device: torch.device) -> nn.Module:
        """See ``Task``, as for all methods here."""
        self._device = device
        return DiT(self.shape, generator=torch.Generator().manual_seed(0)).to(device)

    def fetch(self, positions: NDArray[np.int64]) -> list[torch.Tensor]:
        rows = positions % ROWS
        moments = torch.from_numpy(self.moments[rows].astype(np.float32))
        fetched = [torch.from_numpy(positions), moments, self.labels[torch.from_numpy(rows)]]
        return [value.pin_memory() for value in fetched] if self._device.type == "cuda" else fetched

    def batch(self, fetched: list[torch.Tensor]) -> TrainingBatch:
        at, moments, labels = (value.to(self._device, non_blocking=True) for value in fetched)
        return training_batch(
            0, at, moments, labels, shift=0.0, scale=SCALE, num_timesteps=1000, num_classes=CLASSES,
            class_dropout_prob=0.1,
        )  # fmt: skip

    def losses(self, model: nn.Module, batch: TrainingBatch) -> torch.Tensor:
        x_t = q_sample(self.schedule, batch.x_start, batch.t, batch.noise)
        output = model(x_t, batch.t, batch.y)
        return diffusion_loss(
            self.schedule, output, batch.x_start, x_t, batch.t, batch.noise, learn_sigma=True
        ).loss

    @property
    def t_ranges(self) -> tuple[str, ...]:
        return t_ranges(1000)

    def t_range(self, batch: TrainingBatch) -> torch.Tensor:
        return t_range(batch.t, 1000)

    def heldout(self, step: int, size: int) -> Iterator[TrainingBatch]:
        yield from ()

    def flops(self) -> float:
        return 3.0 * dit_flops(self.shape)

    def memory(self, config: TrainingConfig) -> dict[str, int]:
        raise AssertionError("a benchmark fits")

    def at_checkpoint(self, model: nn.Module, step: int) -> Mapping[str, bytes]:
        return {}

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job, history: History) -> None:
        raise AssertionError("a benchmark has no result")


class OurLoop:
    """The real loop, stopped after every step: a call is a step.

    A step that raises ends it.
    """

    def __init__(
        self,
        task: LatentsTask,
        batch_size: int,
        folder: Path,
        device: torch.device = CPU,
        parallel: Parallel | None = None,
        **settings: Any,
    ) -> None:
        self._task, self._device, self._parallel = task, device, parallel or Alone()
        self.model: nn.Module | None = None
        """What it trains, from the first step on."""
        self._config = TrainingConfig(
            output="unused", steps=1_000_000, batch_size=batch_size, checkpoint_every=1_000_000, **settings
        )
        self._job = Job.open(open_store(str(folder)), "train", {"a": "benchmark"})
        self._steps = self._stepped()

    def __call__(self) -> None:
        next(self._steps)

    def close(self) -> None:
        """Gives up what it holds."""
        self._steps.close()
        self.model = None

    def _stepped(self) -> Generator[None]:
        """Yields after each step, at whose end the loop's thread waits for the next call."""
        go: queue.SimpleQueue[bool] = queue.SimpleQueue()
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        task, threads = self._task, torch.get_num_threads()

        def report(_: TrainingState) -> None:
            done.put(None)
            if not go.get():
                raise _Closed

        def run() -> None:
            torch.set_num_threads(threads)
            try:
                self.model = task.setup(self._device)
                train_steps(
                    TrainingState.initial(self.model, task.optimizer, task.ema_decay),
                    task, self._config, self._job,
                    data=StepBatches(task, self._config.batch_size), parallel=self._parallel,
                    checkpointer=JobCheckpointer(self._job, 1_000_000, 1_000_000), report=report,
                )  # fmt: skip
            except BaseException as error:
                done.put(error.with_traceback(None))  # whose frames would hold the model

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while True:
                if (error := done.get()) is not None:
                    raise error
                yield
                go.put(True)
        finally:
            go.put(False)
            thread.join()


class _Closed(Exception):
    """No more steps are wanted."""


class PlainLoop:
    """What a training script does per step, eagerly; under autocast if ``bfloat16``."""

    def __init__(
        self, task: LatentsTask, batch_size: int, device: torch.device = CPU, *, bfloat16: bool = False
    ) -> None:
        self._device = device
        self._task, self._model = task, task.setup(device)
        self._autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)
        self._average = {name: value.detach().clone() for name, value in self._model.named_parameters()}
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, weight_decay=0)
        latents = torch.from_numpy(task.moments.astype(np.float32)).chunk(2, dim=1)[0] * SCALE
        rows = torch.utils.data.TensorDataset(latents, task.labels)
        self._loader = torch.utils.data.DataLoader(rows, batch_size, shuffle=True, drop_last=True)
        self._batches = iter(self._loader)

    def __call__(self) -> None:
        try:
            x_start, labels = next(self._batches)
        except StopIteration:
            self._batches = iter(self._loader)
            x_start, labels = next(self._batches)
        x_start, labels = x_start.to(self._device), labels.to(self._device)
        t = torch.randint(0, 1000, (len(labels),), device=self._device)
        noise = torch.randn_like(x_start)
        labels = torch.where(torch.rand(len(labels), device=self._device) < 0.1, CLASSES, labels)
        with self._autocast():
            loss = self._task.losses(self._model, TrainingBatch(x_start, t, noise, labels)).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            for name, value in self._model.named_parameters():
                self._average[name].mul_(0.9999).add_(value.detach(), alpha=1 - 0.9999)
        loss.item()


def products(shape: DiTConfig, batch_size: int) -> Callable[[], None]:
    """The matrix products and attention of a step alone, forward and backward."""
    tokens, width = batch_size * (shape.input_size // shape.patch_size) ** 2, shape.hidden_size
    hidden, heads = int(width * shape.mlp_ratio), shape.num_heads
    pairs = [
        (tokens, width, 3 * width),
        (tokens, width, width),
        (tokens, width, hidden),
        (tokens, hidden, width),
    ]
    pairs.append((batch_size, width, 6 * width))
    layers = [(torch.randn(rows, a), torch.randn(b, a), torch.randn(rows, b)) for rows, a, b in pairs]
    parts = torch.randn(3, batch_size, heads, tokens // batch_size, width // heads)
    upstream = torch.randn_like(parts[0])

    def once() -> None:
        for _ in range(shape.depth):
            for inputs, weight, above in layers:
                F.linear(inputs, weight)
                torch.mm(above, weight)
                torch.mm(above.T, inputs)
            q, k, v = (part.clone().requires_grad_() for part in parts)
            F.scaled_dot_product_attention(q, k, v).backward(upstream)

    return once


def main() -> None:
    """Measures, prints the ratios and writes them down."""
    parser = argument_parser(__doc__)
    add_options(parser, turns=5, quick="two turns")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="per turn, of which the median counts")
    arguments = parser.parse_args()
    shape, size = shape_of(arguments, CLASSES), arguments.batch_size
    task, threads = LatentsTask(shape), arguments.threads
    mine, peer = partial(set_up_torch, threads), partial(torch.set_num_threads, threads)
    ours: dict[str, dict[str, Any]] = {"ours": {}, "ours, compiled": {"compile": True}}
    with tempfile.TemporaryDirectory() as folder:
        contenders = {"plain": Contender(partial(PlainLoop, task, size), peer)}
        for name, settings in ours.items():
            build = partial(OurLoop, task, size, Path(folder, name), **settings)
            contenders[name] = Contender(build, mine)
        contenders["products"] = Contender(partial(products, shape, size), mine)
        with in_own_processes(contenders, repeats=arguments.steps) as measure:
            seconds = in_turns(measure, 2 if arguments.quick else arguments.turns)
    ratios = {
        f"{peer} / {name}": spread_of_ratios(seconds[peer], seconds[name])
        for peer in ("plain", "products")
        for name in ours
    }
    for name, (median, low, high) in ratios.items():
        print(f"{name}: {median:.3f} ({low:.3f} to {high:.3f})")
    result = {
        "machine": machine(), "model": arguments.size, "batch_size": arguments.batch_size,
        "threads": arguments.threads, "seconds": seconds, "median, lowest, highest": ratios,
    }  # fmt: skip
    write_json((TRIALS if arguments.quick else RESULTS) / "training.json", result)


if __name__ == "__main__":
    main()
