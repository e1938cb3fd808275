"""The demo with all its outputs in object storage: `python -m jobs.demo_s3`, what `make demo-s3` runs.

A real S3 server (SeaweedFS) on 127.0.0.1 keeps its data in demo-s3/; everything the demo makes goes to
s3://ray-dit/demo. Hardware and time as jobs/demo.py, about a minute more. Expected: where ./demo is there
too, every object has the sha256 of its file. Running it again redoes nothing.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from jobs.demo import FOLDER, run_demo
from jobs.local_s3 import CREDENTIALS, make_bucket, start_seaweed
from ray_dit.errors import UserError
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store, ahead

BUCKET = "ray-dit"
URI = f"s3://{BUCKET}/demo"
REPORT = "report.html"
"""Shows times and commands, so it differs from run to run."""


def main() -> None:
    """Parses options, starts the server, runs the demo on it, compares."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo_s3", description=__doc__)
    parser.add_argument("--data", default="demo-s3", help="folder of the S3 server's data")
    parser.add_argument("--beside", default=FOLDER, help="the demo on disk to compare with")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args()
    try:
        run_on_s3(Path(options.data), Path(options.beside))
    except (UserError, RuntimeError) as error:
        if options.debug:
            raise
        sys.exit(f"demo-s3: error: {error}")


def run_on_s3(data: Path, beside: Path) -> None:
    """Runs the demo on a server of its own.

    UserError if what it made differs from the demo on disk at ``beside``.
    """
    endpoint, stop = start_seaweed(data)
    os.environ.update(CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"})
    try:
        make_bucket(endpoint, BUCKET)
        run_demo(URI)
        copy_report(open_store(URI), data)
        print(compare(open_store(URI), beside))
    finally:
        stop()


def copy_report(store: Store, data: Path) -> None:
    """A browser reads files: the report lies beside the server's data too."""
    (data / REPORT).write_bytes(store.get(REPORT))
    print(f"report: {data / REPORT}")


def compare(store: Store, beside: Path) -> str:
    """A sentence on both demos being equal; UserError, with the first names, if they are not."""
    if not (beside / "evaluation" / "manifest.json").exists():
        return f"{beside} holds no finished demo to compare with: `make demo` makes one"
    ours, theirs = digests(store), digests(open_store(str(beside)))
    different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if different:
        raise UserError(
            f"{len(different)} objects differ between {store.uri} and {beside}, first "
            f"{', '.join(different[:3])}: they were made by other settings, versions or kinds of machines; "
            "remove one of them and run its demo again"
        )
    return f"equal: all {len(ours)} objects at {store.uri} have the sha256 of their files in {beside}"


def digests(store: Store) -> dict[str, str]:
    """sha256 of every object's bytes by its key, without what a clock is in."""
    return dict(zip(keys := list(_compared(store)), ahead(store.sha256, keys), strict=True))


def _compared(store: Store) -> Iterator[str]:
    for info in store.list():
        if info.key != REPORT and "_runs" not in info.key.split("/"):
            yield info.key


if __name__ == "__main__":
    main()
