"""Shards made by Ray Data actors: numbers go in, finished objects come out. Both encode and generate work this way.

A maker lives in an actor with its model and builds a shard in memory; the actor puts it through the job protocol, so a
lost actor or a repeated task costs time and nothing else. The driver holds shard numbers and counts, never rows of data.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ray_dit.config import EncodeConfig, GenerateConfig
from ray_dit.errors import UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import repair
from ray_dit.session import ray_session
from ray_dit.stages.progress import progress
from ray_dit.storage.store import Store

SHARDS_A_BLOCK = 100
"""Shard numbers handed to Ray Data in one block; one block a shard would cost more in scheduling than in work."""


class ShardMaker(Protocol):
    """Lives in an actor: made with its model loaded, it gives a shard's key, bytes and deterministic facts."""

    def make(self, shard: int) -> tuple[str, bytes, dict[str, Any]]: ...


def shard_name(shard: int) -> str:
    """Name of a shard's marker."""
    return f"{shard:05d}"


def make_shards(
    ray: Any,
    job: Job,
    build: Callable[[], ShardMaker],
    num_shards: int,
    *,
    what: str,
    unit: str,
    total: int,
    threads: int,
    actors: int,
    use_gpu: bool,
    count: str = "rows",
) -> None:
    """Makes the shards that have no marker yet on ``actors`` actors; shows progress in ``unit`` out of ``total``."""
    missing, done = _missing(job, num_shards, count)
    run = job.run({"what": what, "actors": actors, "device": "gpu" if use_gpu else "cpu"})
    begun = done
    if missing:
        with progress(what, total, unit, done=done) as advance:
            for made in _results(
                ray, job, build, missing, threads=threads, actors=min(actors, len(missing)), gpu=use_gpu
            ):
                done += made[count]
                advance(done)
    run.end(**{unit: done - begun, "shards": len(missing)})


def all_markers(job: Job, num_shards: int) -> Iterator[dict[str, Any]]:
    """The markers in shard order."""
    return job.markers([shard_name(shard) for shard in range(num_shards)])


def _missing(job: Job, num_shards: int, count: str) -> tuple[list[int], int]:
    """Numbers of the shards without a marker, and how much the others hold."""
    there = set(job.names())
    names = {shard: shard_name(shard) for shard in range(num_shards)}
    done = sum(
        int(marker[count]) for marker in job.markers([name for name in names.values() if name in there])
    )
    return [shard for shard, name in names.items() if name not in there], done


def repair_shards(config: EncodeConfig | GenerateConfig, job: Job, build: Callable[[], ShardMaker]) -> None:
    """``--repair``: reads the job's objects again and makes missing and damaged shards anew, in place; prints which.

    UserError if a shard's bytes do not come out as they were, or if the damaged object is no shard.
    """
    gpus = 1 if config.use_gpu else 0
    with ray_session(config) as ray:
        maker = ray.remote(num_cpus=config.threads, num_gpus=gpus)(_Maker).remote(build, config.threads)

        def rebuild(_: Store, marker: dict[str, Any]) -> bytes:
            if "shard" not in marker:
                where = job.store.where(marker["key"])
                raise UserError(f"{where} is damaged and no shard: run the job in another folder")
            return ray.get(maker.rebuild.remote(marker["shard"]))

        for problem in repair(job.store, rebuild):
            print(f"repaired {problem}")


class _Maker:
    """A shard maker in an actor of its own."""

    def __init__(self, build: Callable[[], ShardMaker], threads: int) -> None:
        _prepare_torch(threads)
        self._maker = build()

    def rebuild(self, shard: int) -> bytes:
        return self._maker.make(shard)[1]


def _prepare_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)


class _Actor:
    """What Ray Data makes one of per actor: turns a user's error into a row, for exceptions would be retried."""

    def __init__(self, job: Job, build: Callable[[], ShardMaker], threads: int) -> None:
        _prepare_torch(threads)
        self._job = job
        self._error: str | None = None
        self._maker: ShardMaker | None = None
        try:
            self._maker = build()
        except UserError as error:
            self._error = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"marker": [json.dumps(self._marker(int(shard))) for shard in batch["shard"]]}

    def _marker(self, shard: int) -> dict[str, Any]:
        if self._maker is None:
            return {"error": self._error}
        name = shard_name(shard)
        try:
            done = self._job.marker(name)  # another attempt may have made it
            if done is not None:
                return done
            key, data, facts = self._maker.make(shard)
            return self._job.put(name, key, data, {"shard": shard, **facts})
        except UserError as error:
            return {"error": str(error)}


def _results(
    ray: Any,
    job: Job,
    build: Callable[[], ShardMaker],
    shards: list[int],
    *,
    threads: int,
    actors: int,
    gpu: bool,
) -> Iterator[dict[str, Any]]:
    _quiet(ray)
    blocks = -(-len(shards) // SHARDS_A_BLOCK)
    dataset = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=max(blocks, actors)
    )
    made = dataset.map_batches(
        _Actor,
        fn_constructor_kwargs={"job": job, "build": build, "threads": threads},
        batch_size=1,
        num_cpus=threads,
        num_gpus=1 if gpu else 0,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    for row in made.iter_rows():
        line = json.loads(row["marker"])
        if line.get("error"):
            raise UserError(line["error"])
        yield line


def _quiet(ray: Any) -> None:
    """Turns Ray Data's own bars and words off; the stages report progress themselves."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a row is a shard; splitting one would only cost
    for handler in logging.getLogger("ray.data").handlers:  # set up when ray.data is imported, so not before
        if getattr(handler, "stream", None) is sys.stderr:
            handler.setLevel(logging.ERROR)
