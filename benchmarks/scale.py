"""What a job costs beside its images: 100,000 shards, 20,000 objects on S3, 64 actors.

``python -m benchmarks.scale [--part plan s3 gpus] [--quick]``. A stub takes the place of what samples images,
so that all that is left is what ray-dit adds; no shard holds an image.

``plan``: ``ray-dit generate`` with 1 billion images of 1,000 classes, 100,000 shards of 10,000, into a
folder. How long until the first marker is there, and the driver's memory then and while shards are made. All
other markers are written by this script, but for some that are left out at random; the same command then
makes those and finishes.

``s3``: 20,000 shards on an S3 server beside it (SeaweedFS). Objects and markers are deleted at random, also
objects alone, and made again by the same command and by ``--repair``, which reads all. All ETags must be
equal. Says what a
shard takes beyond its sampler, and what it costs the driver.

``gpus``: 64 actors on this machine, whose shards sleep as long as a GPU would compute. Efficiency is the
share of the actors' time in which they compute: in the steady state, from when the last actor is ready to
when the first one finds nothing left, and of the whole, from when the first is ready to the last shard's end.
Actors import no torch here; 64 GPUs would come with more processors than these.

Processor time is that of whole processes, by what they are. Writes ``benchmarks/results/scale.json``.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, TRIALS, Sleeps, argument_parser, machine, write_json
from benchmarks.process_watch import Watch
from ray_dit.config import GenerateConfig, ShardsConfig
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.ledger.markers import mark
from ray_dit.ledger.stored_json import json_line
from ray_dit.results import DatasetResult, ImageShardFacts, ShardFacts
from ray_dit.runtime.session import ray_session, stopped_by_sigterm
from ray_dit.runtime.shard_maker import Made, ShardMaker, make_shard, shard_name
from ray_dit.runtime.shards import Work, make_shards
from ray_dit.stages.dataset_plan import DatasetPlan
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

SHARD_SIZE = 10_000
"""Images of a shard."""
CLASSES = 1000
SEED = 0
"""By which is drawn what is deleted."""
SLEEP = "RAY_DIT_BENCH_SECONDS"
"""Seconds that the stub's sampler sleeps, in the environment of the command."""


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    shards: int = 100_000
    seconds: float = 60.0
    """How long shards are made after the first marker."""
    missing: int = 100
    stored: int = 20_000
    deleted: int = 100
    actors: int = 64
    per_actor: int = 5
    sleep: float = 30.0


QUICK = Sizes(2000, 5.0, 20, 200, 20, 6, 3, 2.0)


@dataclass(frozen=True)
class StubBuild:
    """Makes a stub in place of the painter."""

    config: GenerateConfig
    plan: DatasetPlan

    def __call__(self) -> ShardMaker:
        return Stub(float(os.environ.get(SLEEP, "0")), self.plan)


@dataclass(frozen=True)
class Stub(Sleeps):
    """Makes shards that hold their number, with the facts of real ones."""

    plan: DatasetPlan

    def finish(self, outputs: int) -> Made:
        """A few bytes; the classes are counted as the painter does."""
        import numpy as np

        ids = self.plan.ids(outputs)
        counts = np.unique(self.plan.labels(ids), return_counts=True)
        facts = ImageShardFacts(
            shard=outputs,
            rows=len(ids),
            pixels_sha256=f"{outputs:064x}",
            first_id=int(ids[0]),
            classes={str(label): int(count) for label, count in zip(*counts, strict=True)},
        )
        return Made(f"{self.plan.name(outputs)}.parquet", f"shard {outputs}".encode(), facts)


def command(arguments: Sequence[str]) -> None:
    """``ray-dit`` with these arguments, whose `generate` has a stub for a painter."""
    from ray_dit.cli.main import main as ray_dit
    from ray_dit.stages import generate

    setattr(generate, "Build", StubBuild)  # noqa: B010
    ray_dit(arguments)


@dataclass(frozen=True)
class SleeperBuild:
    """Makes a maker whose shards sleep."""

    seconds: float

    def __call__(self) -> ShardMaker:
        return Sleeper(self.seconds, os.getpid(), time.time())


@dataclass(frozen=True)
class Sleeper:
    """Makes one shard after the other, and says when."""

    seconds: float
    actor: int
    ready: float

    def prepare(self, shard: int) -> int:
        """Nothing to read."""
        return shard

    def compute(self, inputs: int) -> tuple[int, float, float]:
        """Sleeps."""
        begin = time.time()
        time.sleep(self.seconds)
        return inputs, begin, time.time()

    def finish(self, outputs: tuple[int, float, float]) -> Made:
        """A kilobyte."""
        shard, begin, end = outputs
        said = {"shard": shard, "actor": self.actor, "ready": self.ready, "begin": begin, "end": end}
        return Made(f"data/{shard_name(shard)}", b"x" * 1000, ShardFacts.model_validate(said))


def no_set_up(threads: int) -> None:
    """These actors need no torch."""


def simulate(output: str, actors: int, shards: int, seconds: float) -> None:
    """The driver of ``gpus``: Ray is told of a processor for each actor."""
    config = ShardsConfig(output=output, actors=actors, num_cpus=actors)
    with ray_session(config) as ray:
        job = Job.open(open_store(output), "generate", {"made": "by a benchmark"})
        make_shards(
            ray,
            config,
            job,
            SleeperBuild(seconds),
            Work("benchmark", "shards", [1] * shards),
            set_up=no_set_up,
        )


@contextmanager
def started(
    arguments: Sequence[str], **environment: str
) -> "Iterator[tuple[subprocess.Popen[bytes], Watch]]":
    """This script as a driver, being watched; ended with SIGTERM where it has not ended."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale", *arguments], env={**os.environ, **environment}
    )
    watch = Watch(driver)
    try:
        yield driver, watch
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGTERM)
            driver.wait()
        watch.stop()


def waited_for(there: Callable[[], bool], driver: "subprocess.Popen[bytes]") -> float:
    """When something was there; SystemExit where the driver ends before."""
    while not there():
        if driver.poll() is not None:
            raise SystemExit("the driver ended too soon")
        time.sleep(0.02)
    return time.time()


def finished(driver: "subprocess.Popen[bytes]") -> float:
    """When the driver had ended well."""
    if driver.wait():
        raise SystemExit("the driver failed")
    return time.time()


def generate_options(model: str, output: str, shards: int) -> list[str]:
    """The command of ``plan`` and ``s3``."""
    options = {
        "model": model,
        "output": output,
        "num-images": shards * SHARD_SIZE,
        "shard-size": SHARD_SIZE,
        "actors": 2,
    }
    return ["--command", "generate", *(f"--{name}={value}" for name, value in options.items())]


def stub_of(model: str, output: str, shards: int) -> Stub:
    """The stub that the command's actors have."""
    from ray_dit.stages.generate import settle

    config = GenerateConfig(model=model, output=output, num_images=shards * SHARD_SIZE, shard_size=SHARD_SIZE)
    return Stub(0.0, settle(config).plan)


def write_markers(stub: Stub, folder: Path, shards: Sequence[int]) -> None:
    """Markers as a job leaves them but on one line, of objects that are not there: finishing reads none."""
    for shard in shards:
        made = make_shard(stub, shard)
        marker = mark(shard_name(shard), made.key, made.data, made.facts)
        (folder / f"{shard_name(shard)}.json").write_bytes(json_line(marker.to_json()))


def write_all_markers(stub: Stub, folder: Path, shards: Sequence[int]) -> None:
    """``write_markers`` on all processors."""
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        each = [pool.submit(write_markers, stub, folder, shards[part::workers]) for part in range(workers)]
        for written in each:
            written.result()


def plan_part(model: str, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """A billion images in a folder."""
    output = folder / "plan"
    options, markers = generate_options(model, str(output), sizes.shards), output / "_markers"
    begun = time.time()
    with started(options) as (driver, watch):
        first = waited_for(lambda: markers.is_dir() and any(markers.glob("*.json")), driver)
        time.sleep(sizes.seconds)
    made = len(list(markers.glob("*.json")))
    result: dict[str, Any] = {
        "images": sizes.shards * SHARD_SIZE,
        "first_marker_seconds": round(first - begun, 1),
        "driver_mb_until_then": watch.peak_mb(end=first),
        "driver_mb_while_made": watch.peak_mb(begin=first),
        "shards_per_second": round(made / sizes.seconds, 1),
        "cpu_ms_per_shard": per_shard(watch.spent(first, first + sizes.seconds), made),
    }
    print(f"plan: {result}", flush=True)
    chance = random.Random(SEED)
    there = {int(path.stem) for path in markers.glob("*.json")}
    left_out = set(chance.sample(range(sizes.shards), sizes.missing))
    for shard in there & left_out:
        (markers / f"{shard_name(shard)}.json").unlink()
    rest = [shard for shard in range(sizes.shards) if shard not in there | left_out]
    write_all_markers(stub_of(model, str(output), sizes.shards), markers, rest)
    begun = time.time()
    last = markers / f"{shard_name(max(left_out))}.json"
    with started(options) as (driver, watch):
        remade = waited_for(last.exists, driver)
        ended = finished(driver)
    manifest = read_manifest(str(output), DatasetResult)
    if (manifest.listings[0].count, manifest.facts.rows) != (sizes.shards, sizes.shards * SHARD_SIZE):
        raise SystemExit("the manifest does not list all shards")
    result |= {
        "missing": sizes.missing,
        "made_again_seconds": round(remade - begun, 1),
        "driver_mb_until_made_again": watch.peak_mb(end=remade),
        "finishing_seconds": round(ended - remade, 1),
        "driver_mb_while_finishing": watch.peak_mb(begin=remade),
        "listing_mb": round((output / manifest.listings[0].key).stat().st_size / 1e6),
    }
    print(f"plan: {result}", flush=True)
    return result


def per_shard(seconds: Mapping[str, float], shards: int) -> dict[str, float]:
    """Milliseconds of processor time for each shard."""
    return {kind: round(1000 * value / max(shards, 1), 2) for kind, value in seconds.items()}


def objects(store: Store) -> dict[str, tuple[int, str | None]]:
    """Size and ETag, which is the MD5 here, of every object that is no run's record, by key."""
    listed = (info for info in store.list() if not info.key.startswith("_runs/"))
    return {info.key: (info.size, info.etag) for info in listed}


def s3_part(model: str, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Thousands of objects on an S3 server."""
    from jobs.local_s3 import CREDENTIALS, make_bucket, start_seaweed

    with ExitStack() as stack:
        endpoint, stop = start_seaweed(folder / "s3")
        stack.callback(stop)
        make_bucket(endpoint, "bench")
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        store = open_store("s3://bench/dataset")
        options = generate_options(model, store.uri, sizes.stored)
        last = f"_markers/{shard_name(sizes.stored - 1)}.json"
        with started(options) as (driver, watch):
            first = waited_for(lambda: store.head("_markers/00000.json") is not None, driver)
            made = waited_for(lambda: store.head(last) is not None, driver)
            ended = finished(driver)
        wall = made - first
        result: dict[str, Any] = {
            "shards": sizes.stored,
            "actors": 2,
            "seconds": round(wall, 1),
            "wall_ms_per_shard": round(1000 * wall / sizes.stored, 2),
            "actor_ms_per_shard": round(2000 * wall / sizes.stored, 2),
            "cpu_ms_per_shard": per_shard(watch.spent(first, made), sizes.stored),
            "finishing_seconds": round(ended - made, 1),
            "driver_mb_while_made": watch.peak_mb(end=made),
            "driver_mb_while_finishing": watch.peak_mb(begin=made),
        }
        print(f"s3: {result}", flush=True)
        before = objects(store)
        chance = random.Random(SEED)
        drawn = chance.sample(range(sizes.stored), sizes.deleted)
        stub, third = stub_of(model, store.uri, sizes.stored), sizes.deleted // 3
        for place, shard in enumerate(drawn):  # the marker alone, both, the object alone
            if place < 2 * third:
                store.delete(f"_markers/{shard_name(shard)}.json")
            if place >= third:
                store.delete(f"{stub.plan.name(shard)}.parquet")
        store.delete("manifest.json")
        begun = time.time()
        with started(options) as (driver, watch):
            resumed = finished(driver) - begun
        begun = time.time()
        with started([*options, "--repair"]) as (driver, watch):
            repaired = finished(driver) - begun
        after = objects(store)
        if before != after:
            differ = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            raise SystemExit(f"{len(differ)} objects differ: {differ[:5]}")
        result |= {
            "deleted": {"markers": 2 * third, "objects": sizes.deleted - third},
            "resumed_seconds": round(resumed, 1),
            "repaired_seconds": round(repaired, 1),
            "equal_objects": len(after),
        }
        listed = manifest_objects(store, read_manifest(store, DatasetResult), ImageShardFacts)
        assert sum(1 for _ in listed) == sizes.stored
    print(f"s3: {result}", flush=True)
    return result


def gpus_part(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Many actors that sleep."""
    output, shards = folder / "gpus", sizes.actors * sizes.per_actor
    begun = time.time()
    arguments = ["--simulate", str(output), str(sizes.actors), str(shards), str(sizes.sleep)]
    # dozens of processes that start at once on a few processors take longer than Ray waits for one
    with started(arguments, RAY_worker_register_timeout_seconds="600") as (driver, watch):
        ended = finished(driver)
    job = Job.open(open_store(str(output)), "generate", {"made": "by a benchmark"})
    told = [marker.facts.to_json() for marker in job.markers(ShardFacts)]
    result = {
        "actors": sizes.actors,
        "shards": shards,
        "shard_seconds": sizes.sleep,
        **efficiency(told),
        "first_ready_seconds": round(min(shard["ready"] for shard in told) - begun, 1),
        "all_ready_seconds": round(max(shard["ready"] for shard in told) - begun, 1),
        "ending_seconds": round(ended - max(shard["end"] for shard in told), 1),
        "driver_mb": watch.peak_mb(),
    }
    begin, end = steady(told)
    during = sum(begin <= shard["end"] <= end for shard in told)
    result["cpu_ms_per_shard"] = per_shard(watch.spent(begin, end), during)
    result["cpu_ms_per_shard_of_the_whole"] = per_shard(watch.spent(), shards)
    print(f"gpus: {result}", flush=True)
    return result


def steady(told: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From when the last actor was ready to the earliest of the actors' last ends."""
    lasts: dict[int, float] = {}
    for shard in told:
        lasts[shard["actor"]] = max(lasts.get(shard["actor"], 0.0), shard["end"])
    return max(shard["ready"] for shard in told), min(lasts.values())


def efficiency(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of the actors' time in which they computed."""
    actors = len({shard["actor"] for shard in told})

    def share(begin: float, end: float) -> float:
        busy = sum(max(min(shard["end"], end) - max(shard["begin"], begin), 0.0) for shard in told)
        return round(busy / actors / (end - begin), 4)

    begin, end = steady(told)
    return {
        "steady_seconds": round(end - begin, 1),
        "efficiency_steady": share(begin, end),
        "efficiency_of_the_whole": share(
            min(shard["ready"] for shard in told), max(shard["end"] for shard in told)
        ),
    }


def write_model(folder: Path) -> str:
    """A model of 1,000 classes, which nothing asks for an image."""
    from tests.support import tiny

    tiny.write_model(folder, tuple(f"class {number}" for number in range(CLASSES)))
    return str(folder)


PARTS = ("plan", "s3", "gpus")


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--simulate", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command:
        return command(options.command)
    if options.simulate:
        output, actors, shards, seconds = options.simulate
        return simulate(output, int(actors), int(shards), float(seconds))
    sizes = QUICK if options.quick else Sizes()
    path = (TRIALS if options.quick else RESULTS) / "scale.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with stopped_by_sigterm(), tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = write_model(folder / "model")
        measure: Mapping[str, Callable[[], dict[str, Any]]] = {
            "plan": lambda: plan_part(model, folder, sizes),
            "s3": lambda: s3_part(model, folder, sizes),
            "gpus": lambda: gpus_part(folder, sizes),
        }
        for part in options.part:
            found[part] = {"machine": machine(), **measure[part]()}
            write_json(path, found)
    return None


if __name__ == "__main__":
    main()
