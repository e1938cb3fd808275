"""What Ray Train and checkpoints cost a training, beside the step itself.

``python -m benchmarks.training_overheads [--size DiT-S/2] [--batch-size 16] [--threads 2] [--turns 5]``,
about 15 minutes on 2 cores. Each turn measures steps of the loop alone in this process, and then those of
the same loop in a worker of Ray Train, as `ray-dit train` starts it, with a checkpoint in the middle. A
step is the time from one loss to the next; of each run the median counts. What the checkpoint costs is the
sum of what the step it is made in and those after it take beyond that: copying the state and, beside the
loop, writing half a gigabyte. It is told as a share of two minutes, and so is what the loop itself waited
for it. Medians and spread go to ``benchmarks/results/training_overheads.json``.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.common import (
    RESULTS,
    TRIALS,
    argument_parser,
    machine,
    spread,
    spread_of_ratios,
    timed,
    write_json,
)
from benchmarks.dit_options import add_options, shape_of
from benchmarks.training import CLASSES, LatentsTask, OurLoop
from ray_dit.config import DiTConfig, TrainingConfig
from ray_dit.core.batch import TrainingBatch
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.training.launch import run_training
from ray_dit.storage.open import open_store

BEFORE, AFTER = 5, 9
"""Steps before the checkpoint, of which the first warms up, and after it."""
INTERVAL = 120.0
"""Seconds between checkpoints that their cost is told for."""


class NotedTask(LatentsTask):
    """Notes when each loss is computed."""

    def __init__(self, shape: DiTConfig, notes: Path) -> None:
        super().__init__(shape)
        self.notes = notes

    def losses(self, model: nn.Module, batch: TrainingBatch) -> torch.Tensor:
        with self.notes.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        return super().losses(model, batch)

    def memory(self, config: TrainingConfig) -> dict[str, int]:
        return {}

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job, history: History) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """A training in a worker of Ray Train."""

    step: float
    """Median seconds of a step."""
    waited: float
    """Share of the time that the loop waited for samples."""
    stalled: float
    """Seconds that it waited for the checkpoint in the middle."""
    cost: float
    """Seconds that this one cost the steps in all."""


def through_ray(ray: Any, shape: DiTConfig, config: TrainingConfig, folder: Path) -> Run:
    """Trains as a worker of Ray Train does, a few steps."""
    folder.mkdir()
    notes = folder / "notes"
    job = Job.open(open_store(str(folder / "run")), "train", {"a": "benchmark"})
    run_training(ray, config, job, NotedTask(shape, notes), "train")
    times = np.array([float(line) for line in notes.read_text().split()])
    steps = np.diff(times)
    undisturbed = np.concatenate([steps[1 : BEFORE - 1], steps[-(AFTER // 3) :]])
    step = float(np.median(undisturbed))
    cost = float(np.sum(steps[BEFORE - 1 :] - step))
    facts = record_of(folder / "run")
    seconds = float(times[-1] - times[0])
    return Run(step, facts["data_wait_seconds"] / seconds, float(steps[BEFORE - 1] - step), cost)


def record_of(folder: Path) -> Mapping[str, Any]:
    """What the run's record says at its end."""
    (end,) = folder.glob("_runs/*/end.json")
    return json.loads(end.read_text())


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    add_options(parser, turns=5, quick="one turn")
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    set_up_torch(arguments.threads)
    shape = shape_of(arguments, CLASSES)
    config = TrainingConfig(
        output="unused", steps=BEFORE + AFTER, batch_size=arguments.batch_size, checkpoint_every=BEFORE,
        threads=arguments.threads, log_every=BEFORE, num_cpus=4,
    )  # fmt: skip
    alone: list[float] = []
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop = OurLoop(LatentsTask(shape), arguments.batch_size, folder / "alone", threads=arguments.threads)
        with ray_session(config) as ray:
            for turn in range(1 if arguments.quick else arguments.turns):
                alone.append(statistics.median(timed(loop, repeats=5, warm_up=1)))
                runs.append(through_ray(ray, shape, config, folder / str(turn)))
                print(f"{alone[-1]:.3f} s alone, {runs[-1]}", flush=True)
    result = {
        "machine": machine(), "model": arguments.size, "batch_size": arguments.batch_size,
        "threads": arguments.threads, "seconds alone": alone,
        "median, lowest, highest": {
            "step in Ray Train / alone": spread_of_ratios([run.step for run in runs], alone),
            "share waited for data": spread([run.waited for run in runs]),
            f"stall of a checkpoint / {INTERVAL:.0f} s": spread([run.stalled / INTERVAL for run in runs]),
            f"cost of a checkpoint / {INTERVAL:.0f} s": spread([run.cost / INTERVAL for run in runs]),
        },
    }  # fmt: skip
    print(json.dumps(result["median, lowest, highest"], indent=1))
    write_json((TRIALS if arguments.quick else RESULTS) / "training_overheads.json", result)


if __name__ == "__main__":
    main()
