"""A job of shards brought to its end, or put right, where some of what it made turns out damaged.

Knows no stage: makers and the ways in which plain objects are made again are handed in.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray_dit.config import EncodeConfig, GenerateConfig, ShardsConfig
from ray_dit.errors import Damaged, UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import repair
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.results import F, Facts, Manifest, Marker
from ray_dit.results import RESULTS
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.session import check_resources, cpus_for, ray_session
from ray_dit.runtime.shard_maker import Remaker, ShardMaker, make_shard
from ray_dit.storage.store import Store

R = TypeVar("R")


def finish_shards(job: Job, make: Callable[[], None], finish: Callable[[], R]) -> R:
    """Makes what is missing and finishes the job; once more where markers turn out damaged then."""
    make()
    try:
        return finish()
    except Damaged:
        if not job.drop_damaged_markers():
            raise
    make()
    return finish()


def take_finished(
    config: EncodeConfig | GenerateConfig,
    job: Job,
    result: type[F],
    build: Callable[[], ShardMaker],
    *,
    gpus: int,
    plain: MadeAgain,
) -> Manifest[F] | None:
    """A finished job's manifest, once damaged plain objects are put back; None while it is unfinished.

    With ``--repair`` all objects are read again first, and put right.
    """
    if config.repair:
        repair_shards(config, job, build, gpus=gpus, plain=plain)
    manifest = job.whole(result)
    if manifest is not None:
        for key in job.restore_plain(plain):
            print(f"repaired {job.store.where(key)}", file=sys.stderr)
    return manifest


def repair_shards(
    config: ShardsConfig,
    job: Job,
    build: Callable[[], ShardMaker],
    *,
    gpus: int = 0,
    plain: MadeAgain | None = None,
    others: Callable[[Any, Marker[Facts]], bytes | None] = lambda ray, marker: None,
) -> None:
    """Reads the job's objects again, makes missing and damaged ones anew and prints which.

    Shards come from an actor with what ``build`` makes, ``plain`` objects by key, and ``others`` from their
    markers. UserError, after everything else is done, if something does not come out as it was, or can't be
    made again.
    """
    with ray_session(config) as ray:
        check_resources(ray, config, cpus=config.threads, gpus=gpus)
        cpus = cpus_for(ray, threads=config.threads, own_threads=config.own_threads)
        maker = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Maker).remote(build, config.threads)

        def rebuild(folder: Store, marker: Marker[Facts]) -> Mapping[str, bytes] | None:
            facts = marker.facts.to_json()
            if folder.uri != job.store.uri:  # another job below this one
                return None
            if facts.get("shard") is None:
                data = others(ray, marker)
                return None if data is None else {marker.key: data}
            made, error = ray.get(maker.rebuild.remote(marker.key, facts))
            if error is not None:
                raise UserError(error)
            return made

        for problem in repair(job.store, rebuild, plain, results=RESULTS):
            print(f"repaired {problem}")


class _Maker:
    """A shard maker in an actor of its own."""

    def __init__(self, build: Callable[[], ShardMaker], threads: int) -> None:
        set_up_torch(threads)
        self._build = build
        self._maker: ShardMaker | None = None

    def rebuild(self, key: str, facts: Mapping[str, Any]) -> tuple[dict[str, bytes], str | None]:
        """The shard's objects, or the message of a user's error, which Ray would wrap if it were raised."""
        try:
            self._maker = self._maker or self._build()
            if isinstance(self._maker, Remaker):
                made = self._maker.make_again(key, facts)
            else:
                made = make_shard(self._maker, facts["shard"])
            return {key: made.data, **made.files}, None
        except UserError as error:
            return {}, str(error)
