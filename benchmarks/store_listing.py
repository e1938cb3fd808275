"""Listing, resuming and verifying a job of 100,000 objects: seconds and memory.

``python -m benchmarks.store_listing [--objects N] [--uri URI]``; without a URI a folder in memory is used.
Prints a table and writes ``benchmarks/results/store_listing.json``. Memory is how much the process's peak
grew over the phase, the whole process being a few tens of MB.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from benchmarks.common import RESULTS, argument_parser, machine, write_json
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import Tally, verify
from ray_dit.ledger.manifest import manifest_objects
from ray_dit.ledger.results import Facts, Marker, Result
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store, ahead

OUTPUT = RESULTS / "store_listing.json"
SIZE = 1024


def shard(number: int) -> bytes:
    """An object's bytes."""
    return hashlib.sha256(str(number).encode()).digest() * (SIZE // 32)


def open_job(store: Store, objects: int) -> Job:
    """The job of so many objects."""
    return Job.open(store, "generate", {"config": {"objects": objects}})


def make(store: Store, objects: int) -> int:
    """Puts all objects with their markers, 16 at a time."""
    job = open_job(store, objects)

    rows = Facts.model_validate({"rows": 1})

    def put(number: int) -> Marker[Facts]:
        return job.put(f"{number:06d}", f"data/{number // 1000:03d}/{number:06d}", shard(number), rows)

    return sum(1 for _ in ahead(put, range(objects), threads=16))


def list_objects(store: Store, objects: int) -> int:
    """Every object, streamed."""
    return sum(1 for _ in store.list("data/"))


def list_done(store: Store, objects: int) -> int:
    """What a rerun asks first: the names that have markers."""
    return sum(1 for _ in open_job(store, objects).names())


def finish(store: Store, objects: int) -> int:
    """Reads all markers and writes listing and manifest."""
    manifest = open_job(store, objects).finish(Result())
    return manifest.listings[0].count


def read_listing(store: Store, objects: int) -> int:
    """What a consumer does."""
    manifest = open_job(store, objects).manifest(Facts)
    assert manifest is not None
    return sum(1 for _ in manifest_objects(store, manifest, Facts))


def verify_all(store: Store, objects: int) -> int:
    """Hashes every object anew."""
    tally = Tally()
    problems: Iterator[object] = verify(store, tally=tally)
    return tally.objects if not list(problems) else -1


PHASES: dict[str, Callable[[Store, int], int]] = {
    "put": make,
    "list": list_objects,
    "names": list_done,
    "finish": finish,
    "listing": read_listing,
    "verify": verify_all,
}


def run_phase(name: str, uri: str, objects: int) -> dict[str, float]:
    """One phase in a process of its own, so that its peak of memory is its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.store_listing",
        "--phase",
        name,
        "--uri",
        uri,
        "--objects",
        str(objects),
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measured(name: str, uri: str, objects: int) -> dict[str, float]:
    """The phase's seconds, objects per second and growth of memory."""
    store = open_store(uri)
    store.head("_job.json")  # connects
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    count = PHASES[name](store, objects)
    seconds = time.perf_counter() - begin
    if count != objects:
        raise RuntimeError(f"{name} saw {count} of {objects} objects")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "seconds": round(seconds, 2),
        "per_second": round(objects / seconds),
        "grown_mb": round(grown / 1024, 1),
    }


def main() -> None:
    """Fills the store, lists it and writes how long that took."""
    parser = argument_parser(__doc__)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--uri", help="an empty place")
    parser.add_argument("--phase", choices=PHASES)
    arguments = parser.parse_args()
    if arguments.phase:
        print(json.dumps(measured(arguments.phase, arguments.uri, arguments.objects)))
        return
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        uri = arguments.uri or folder
        kind = uri.partition("://")[0] if "://" in uri else "folder"
        phases = {name: run_phase(name, uri, arguments.objects) for name in PHASES}
    for name, row in phases.items():
        print(f"{name:8s} {row['seconds']:8.1f} s {row['per_second']:8.0f}/s {row['grown_mb']:7.1f} MB more")
    results = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    results[f"{kind} {arguments.objects}"] = {"machine": machine(), "object_bytes": SIZE, "phases": phases}
    write_json(OUTPUT, results, sort_keys=True)


if __name__ == "__main__":
    main()
