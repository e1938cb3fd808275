"""Datasets made in this process, by what an actor does and without Ray."""

from pathlib import Path
from typing import Any

from ray_dit.config import GenerateConfig
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Manifest
from ray_dit.results import DatasetResult
from ray_dit.runtime.shard_maker import make_shard, shard_name
from ray_dit.stages import generate as stage
from ray_dit.stages.painter import Painter


def make_dataset(config: GenerateConfig) -> Manifest[DatasetResult]:
    """All shards of a generation, and its end."""
    settled = stage.settle(config)
    job, plan = stage._open(config, settled), settled.plan
    put_shards(config, job, settled)
    assert job.generation == plan.generation
    return stage._finish(config, job, settled)


def put_shards(config: GenerateConfig, job: Job, settled: stage.Settled) -> None:
    """What the actors do."""
    painter = Painter(config, settled.plan)
    for shard in settled.plan.work.numbers:
        made = make_shard(painter, shard)
        job.put(shard_name(shard), made.key, made.data, made.facts, files=made.files)


def dataset_config(model: Path, output: Path, **fields: Any) -> GenerateConfig:
    """Settings of a small dataset: a shard holds 4 images, a batch 3."""
    known: dict[str, Any] = {"shard_size": 4, "batch_size": 3, "seed": 5}
    return GenerateConfig(model=str(model), output=str(output), **(known | fields))
