"""A whole job in miniature, run as a process.

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

SHARDS = 3
PARTS = {"config": {"seed": 1}, "libraries": {"torch": "1"}}


def shard_bytes(shard: int) -> bytes:
    """Pure function of the shard's number."""
    return hashlib.sha256(str(shard).encode()).digest() * 100


def small_job(store: Store) -> Job:
    """Runs the protocol from the beginning to the manifest, doing only what is missing."""
    job = Job.open(store, "generate", PARTS)
    if not job.is_finished():
        for shard in range(SHARDS):
            if job.marker(f"{shard:05d}", Facts) is None:
                job.put(f"{shard:05d}", f"data/{shard:05d}.bin", shard_bytes(shard), Facts(rows=1))
        job.put_plain("README.md", b"three shards\n")
        job.finish(Result(rows=SHARDS))
    return job


if __name__ == "__main__":
    uri = sys.argv[1]
    count = arm(int(sys.argv[2]), int(sys.argv[3]), under=uri) if len(sys.argv) > 3 else lambda: 0
    small_job(open_store(uri))
    print(count())
