"""Shards made by Ray Data actors: numbers go in, finished objects come out. Both encode and generate work this way.

A maker is one actor with its model; a call builds one shard in memory and puts it through the job protocol, so a lost
actor or a repeated task costs time and nothing else. The driver holds shard numbers and counts, never rows of data.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ray_dit.errors import UserError
from ray_dit.stages.progress import progress
from ray_dit.storage.job import Job

SHARDS_A_BLOCK = 100
"""Shard numbers handed to Ray Data in one block; one block a shard would cost more in scheduling than in work."""


class ShardMaker(Protocol):
    """Lives in an actor: ``__init__`` loads the model, a call makes the shard of a number and returns its marker."""

    def __call__(self, shard: int) -> dict[str, Any]: ...


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
                ray, build, missing, threads=threads, actors=min(actors, len(missing)), gpu=use_gpu
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


class _Actor:
    """What Ray Data makes one of per actor: turns a user's error into a row, for exceptions would be retried."""

    def __init__(self, build: Callable[[], ShardMaker], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)
        self._error: str | None = None
        try:
            self._make: ShardMaker | None = build()
        except UserError as error:
            self._make, self._error = None, str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import json

        lines: list[str] = []
        for shard in batch["shard"]:
            try:
                line = {"error": self._error} if self._make is None else self._make(int(shard))
            except UserError as error:
                line = {"error": str(error)}
            lines.append(json.dumps(line))
        return {"marker": lines}


def _results(
    ray: Any, build: Callable[[], ShardMaker], shards: list[int], *, threads: int, actors: int, gpu: bool
) -> Iterator[dict[str, Any]]:
    import json

    blocks = -(-len(shards) // SHARDS_A_BLOCK)
    dataset = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=max(blocks, actors)
    )
    made = dataset.map_batches(
        _Actor,
        fn_constructor_kwargs={"build": build, "threads": threads},
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
