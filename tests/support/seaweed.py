"""One SeaweedFS for the whole test run, started when a test first asks for it."""

import atexit
import itertools
import shutil
import tempfile
from functools import cache
from pathlib import Path

from jobs.local_s3 import CREDENTIALS, make_bucket, start_seaweed
from ray_dit.storage.retry import Patience

BUCKET = "tests"
PATIENT = Patience(deadline=60.0, attempt=1.0, bytes_per_second=20e6, first_pause=0.02, longest_pause=0.5)
"""For a store that reaches it through a proxy with faults."""
_prefixes = itertools.count()
_used: set[str] = set()


@cache
def endpoint() -> str:
    """Its endpoint; the server lives as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
    url, stop = start_seaweed(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(stop)
    make_bucket(url, BUCKET)
    return url


def fresh_uri(name: str = "") -> str:
    """A prefix that nothing has used yet.

    With a name it is the same in every run, and so are a proxy's faults.
    """
    prefix = name or f"unnamed-{next(_prefixes)}"
    if prefix in _used:
        raise ValueError(f"two tests use {prefix}")
    _used.add(prefix)
    return f"s3://{BUCKET}/{prefix}"


def environment(url: str) -> dict[str, str]:
    """What a process needs to reach S3 at ``url``."""
    return {**CREDENTIALS, "AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}
