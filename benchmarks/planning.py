"""Planning what encode reads: ten million images, and a tar of a thousand tars that lies far away.

``python -m benchmarks.planning [--images N] [--tars N] [--quick]``; prints and writes
``benchmarks/results/planning.json``.

The images are synthetic rows of 1,000 inner tars, as tasks hand them to the driver, in no order. They are
merged, split, hashed and stored as a plan in parts in a folder; seconds and peak memory are those of a
process of its own, which has imported what `encode` imports. The tars are real, on an S3 server behind 20 ms
of latency per request, and listed by 8 tasks of a Ray that runs already, until the plan is whole in the
driver.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, TRIALS, argument_parser, machine, write_json
from jobs.local_s3 import CREDENTIALS, make_bucket, start_seaweed
from ray_dit.config import ImagesConfig, ShardsConfig
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.listing import ListedBy
from ray_dit.folders.stored_plans import Planned
from ray_dit.formats.kept_rows import read_rows, rows_bytes
from ray_dit.formats.merging import Layout, merge
from ray_dit.formats.rows import Piece, Rows
from ray_dit.ledger.job import Job
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.tasks import in_tasks
from ray_dit.storage.open import open_store

PIECES = 1000
TASKS = 8
LATENCY = 0.02
PER_TAR = 4
"""Images of each real inner tar."""


def rows(images: int) -> Iterator[Rows]:
    """Those of the pieces, from their bytes."""
    count = images // PIECES
    numbers = np.arange(count, dtype=np.int64)
    for piece in range(PIECES):
        wnid = f"n{piece * 7919 % PIECES:08d}"
        names = [f"{wnid}_{number * 7919 % count:08d}.JPEG" for number in range(count)]
        places = {"start": numbers * 110_592, "length": 100_000 + numbers % 997}
        outer = Piece("ILSVRC2012_img_train.tar", size=1 << 37, version=1)
        found = Rows.in_object(outer, names, places, classes=[wnid] * count)
        yield read_rows(rows_bytes(found, "synthetic"), "synthetic")


def plan_synthetic(images: int) -> dict[str, float]:
    """Seconds of each step, and the peak of this process's memory."""
    import ray_dit.stages.encode  # noqa: F401  # which a driver has in memory

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, float] = {}
    begun = last = time.perf_counter()

    def done(step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[step], last = round(now - last, 2), now

    listing = merge("synthetic", rows(images), Layout(in_archive=True))
    done("merge")
    plan = ImagePlan.of(replace(listing, format="tars"), ImagesConfig(uri="synthetic", heldout=0.02))
    del listing
    done("split and hash")
    planned = Planned.new(plan)
    del plan
    with tempfile.TemporaryDirectory() as folder:
        parts = {"inputs": {"images": planned.plan.sha256}, "rules": 3}
        stored = planned.stored(Job.open(open_store(folder), "encode", parts))
        done("store")
        if stored.plan.count != images:
            raise RuntimeError(f"{stored.plan.count} of {images} images are planned")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {"peak_mb": round(peak / 1024), "before_mb": round(before / 1024)}
    return {**seconds, "seconds": round(last - begun, 2), **memory}


def tar_of_tars(tars: int) -> bytes:
    """Inner tars of a few images each, which nobody decodes."""
    from tests.support.layouts import tar_bytes

    inner = {
        f"n{number:08d}.tar": tar_bytes(
            {f"n{number:08d}_{image}.JPEG": bytes(3000 + image) for image in range(PER_TAR)}
        )
        for number in range(tars)
    }
    return tar_bytes(inner)


def plan_far_away(tars: int) -> dict[str, float]:
    """Seconds to plan a tar of tars behind latency, with tasks, and again where the rows were kept."""
    from tests.support.proxy import FaultProxy

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        endpoint, stop = start_seaweed(folder / "s3")
        stack.callback(stop)
        make_bucket(endpoint, "bench")
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        open_store("s3://bench/images").put("train.tar", tar_of_tars(tars))
        late = FaultProxy(endpoint, rate=1.0, kinds=("latency",), per_target=10**9, latency_seconds=LATENCY)
        os.environ["AWS_ENDPOINT_URL"] = stack.enter_context(late).endpoint
        config = ShardsConfig(output="s3://bench/latents", num_cpus=TASKS)
        stack.enter_context(ray_session(config))
        by = ListedBy(in_tasks(config), open_store(config.output))
        images = ImagesConfig(uri="s3://bench/images/train.tar", heldout=0.02)
        found: dict[str, float] = {}
        plans: list[ImagePlan] = []
        for turn in ("seconds", "resumed_seconds"):
            begun = time.perf_counter()
            plans.append(plan_images(images, by))
            found[turn] = round(time.perf_counter() - begun, 2)
        if plans[0].count != tars * PER_TAR or plans[0].to_bytes() != plans[1].to_bytes():
            raise RuntimeError("the plans differ")
        return found


def in_process(images: int) -> dict[str, Any]:
    """``plan_synthetic`` in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "benchmarks.planning", "--synthetic", "--images", str(images)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--tars", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="few of both, to see that it works")
    parser.add_argument("--synthetic", action="store_true", help="the first part alone, in this process")
    arguments = parser.parse_args()
    if arguments.synthetic:
        print(json.dumps(plan_synthetic(arguments.images)))
        return
    images, tars = (200_000, 20) if arguments.quick else (arguments.images, arguments.tars)
    result = {
        "machine": machine(),
        "synthetic": {"images": images, "pieces": PIECES, **in_process(images)},
        "tar_of_tars": {"tars": tars, "tasks": TASKS, "latency": LATENCY, **plan_far_away(tars)},
    }
    write_json((TRIALS if arguments.quick else RESULTS) / "planning.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
