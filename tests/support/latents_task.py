"""The DiT of `ray-dit train` on latents made of numbers: the stage's task without images, VAE and Ray."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_dit.config import DiTSizeConfig, OptimizerConfig, TrainConfig
from ray_dit.core.determinism import make_deterministic
from ray_dit.core.rng import Stream, normal
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.formats.loss_curve import named
from ray_dit.formats.worker_history import History
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import read_manifest
from ray_dit.results import LatentsResult
from ray_dit.runtime.training.board import Progress
from ray_dit.runtime.training.parallel import Alone, Parallel
from ray_dit.runtime.training.worker import train_worker
from ray_dit.stages.train import DiTTask, model_config_of
from ray_dit.storage.open import open_store
from tests.support.results import latent_facts, latents_result

ROWS, HELD_OUT, CLASSES, SHAPE = 60, 12, 3, (4, 8, 8)
SIZE = DiTSizeConfig(patch_size=2, hidden_size=32, depth=2, num_heads=2)


def write_latents(folder: Path) -> str:
    """A folder as encode leaves it: rows of three classes whose latents and mirror images differ."""
    labels = np.arange(ROWS) % CLASSES
    # the noise of ray_dit.core.rng, since that of numpy may change with its version
    drawn = normal(7, torch.arange(2 * ROWS), 0, SHAPE, stream=Stream.SAMPLE).numpy().reshape(2, ROWS, *SHAPE)
    means = drawn * 0.5 + labels[:, None, None, None]
    means[1] -= 2.0  # of mirror images
    moments = np.concatenate([means, np.full_like(means, -4.0)], axis=2).astype(np.float16)
    heldout = np.arange(ROWS) >= ROWS - HELD_OUT
    keys = [f"{label}/{row:04d}" for row, label in enumerate(labels)]
    job = Job.open(open_store(str(folder)), "encode", {"made": "by a test"})
    data = latent_shard_bytes(LatentShard(keys, labels, heldout, moments[0], moments[1]))
    job.put("00000", "latents/00000.parquet", data, latent_facts(0, ROWS, train_rows=ROWS - HELD_OUT))
    names = tuple("abc"[:CLASSES])
    job.finish(latents_result(classes=names, rows=ROWS, train_rows=ROWS - HELD_OUT, latent_shape=SHAPE))
    return str(folder)


def train_config(latents: str, **fields: Any) -> TrainConfig:
    """Settings with which labels, mirror images and the average matter within some steps."""
    known: dict[str, Any] = {"steps": 50, "batch_size": 8, "log_every": 1, "checkpoint_every": 50}
    known |= {"validate_every": 10, "grid_per_class": 0, "label_init_std": 1.0, "ema_decay": 0.7}
    known |= {"model": SIZE, "optimizer": OptimizerConfig(learning_rate=2e-3)}
    return TrainConfig(latents=latents, output="unused", **known | fields)


@dataclass
class LatentsTask(DiTTask):
    """Keeps its result instead of writing a model."""

    log: NDArray[np.float64] | None = None
    result: dict[str, torch.Tensor] = field(default_factory=lambda: {})

    def finish(self, model: nn.Module, log: NDArray[np.float64], job: Job, history: History) -> None:
        self.log = log
        self.result = {name: value.detach().clone() for name, value in model.state_dict().items()}


def latents_task(config: TrainConfig, folder: Path, kind: type[LatentsTask] = LatentsTask) -> LatentsTask:
    """The task of these settings; its model would go below ``folder``."""
    latents = read_manifest(config.latents, LatentsResult)
    model_config = model_config_of(config, latents.facts)
    model_job = Job.open(open_store(str(folder / "model")), "model", {"made": "by a test"})
    return kind(config, model_config, latents, model_job, config.optimizer, config.ema_decay)


def train_latents(
    folder: Path,
    config: TrainConfig,
    kind: type[LatentsTask] = LatentsTask,
    *,
    parallel: Parallel | None = None,
    show: Callable[[Progress], None] = lambda progress: None,
) -> LatentsTask:
    """Trains in ``folder`` as a worker does; the task, which has the result on the first worker.

    Latents are copied to $RAY_DIT_CACHE.
    """
    task = latents_task(config, folder, kind)
    job = Job.open(open_store(str(folder)), "train", {"made": "by a test"})
    cpu = torch.device("cpu")
    train_worker(task, config, job, device=cpu, parallel=parallel or Alone(), show=show)
    return task


def points(task: LatentsTask) -> list[dict[str, Any]]:
    """The loss curve by name."""
    assert task.log is not None
    return [named(point, task.t_ranges) for point in task.log.tolist()]


def main() -> None:
    """Prints the loss curve of the golden training: `python -m tests.support.latents_task > losses.jsonl`."""
    make_deterministic(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAY_DIT_CACHE"] = f"{folder}/cache"
        config = train_config(write_latents(Path(folder, "latents")))
        task = train_latents(Path(folder, "run"), config)
    sys.stdout.write("".join(json.dumps(point) + "\n" for point in points(task)))


if __name__ == "__main__":
    main()
