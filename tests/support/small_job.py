"""A whole job in miniature and an extension of it, run as a process.

``python -m tests.support.small_job URI [NTH SIGNAL]``; the same bytes whoever runs it.

With NTH it gets the signal just before its NTH change in the local folder URI; it prints how many there were.
"""

import hashlib
import sys

from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Facts, Result
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support.killer import arm

SHARDS = (2, 1)
"""Of the job, and of its extension."""
READMES = (b"two shards\n", b"three shards\n")
PARTS = {"config": {"seed": 1}, "libraries": {"torch": "1"}}
LONGER = {**PARTS, "config": {"seed": 1, "shards": 3}}


def shard_bytes(shard: int) -> bytes:
    """Pure function of the shard's number."""
    return hashlib.sha256(str(shard).encode()).digest() * 100


def small_job(store: Store) -> Job:
    """Runs the protocol from the beginning to the last manifest, doing only what is missing."""
    made(Job.open(store, "generate", PARTS))
    return made(Job.extend(store, "generate", LONGER, may_change=["config.shards"]))


def made(job: Job) -> Job:
    """Brings one generation to its end."""
    if not job.is_finished():
        for shard in range(SHARDS[job.generation]):
            name = f"{shard:05d}"
            if job.marker(name, Facts) is None:
                job.put(name, f"data/{job.prefix}{name}.bin", shard_bytes(shard), Facts(rows=1))
        job.put_plain("README.md", READMES[job.generation])
        job.finish(Result(rows=sum(SHARDS[: job.generation + 1])))
    return job


if __name__ == "__main__":
    uri = sys.argv[1]
    count = arm(int(sys.argv[2]), int(sys.argv[3]), under=uri) if len(sys.argv) > 3 else lambda: 0
    small_job(open_store(uri))
    print(count())
