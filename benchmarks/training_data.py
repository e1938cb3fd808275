"""Training's first step on latents far away, and how long it waits for data until all are local.

``python -m benchmarks.training_data [--quick]``. Latents of 40 GB lie behind simulated storage: each request
takes 20 ms, and all share a bandwidth. Steps are simulated, too: batch 256, half a second each, about what
DiT-XL/2 at 256 pixels takes on one H100. What reads, copies and checks the rows is the real code, with real
files in RAY_DIT_CACHE or a temporary folder.

``first step``: the folder is opened and one step is taken; how many bytes has storage given by then? The
target is below 5 % of the folder. ``until local``: a tenth of the folder behind a tenth of the bandwidth,
which takes as many steps, trained until all is local; the target is to wait for at most 20 % of the time.
``never local``: the same without a local copy. Prints a table and writes
``benchmarks/results/training_data.json``.
"""

import argparse
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import RESULTS, TRIALS, argument_parser, machine, write_json
from ray_dit.core.order import rows_at
from ray_dit.folders.latents import LatentRows, open_latent_rows
from ray_dit.formats.latent_layout import index_facts
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.runtime.training.data import StepBatches
from ray_dit.storage.local import LocalStore

NAME = "training_data.json"
ROWS = 1024
"""Of a shard, the default of encode."""
SHAPE = (8, 32, 32)
"""Of a row's moments, with Stable Diffusion's VAE at 256 pixels; there are two views."""
SLICE = 256 << 10
"""Bytes after which a transfer lets others go first."""


@dataclass
class Link:
    """What storage takes to answer: seconds per request, and bytes per second over all of them."""

    latency: float
    bandwidth: float
    given: int = 0
    """Bytes so far."""
    _free: float = 0.0
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def pass_through(self, size: int) -> None:
        """Returns when a reply of this size is there."""
        time.sleep(self.latency)
        for start in range(0, size, SLICE):
            part = min(SLICE, size - start)
            with self._mutex:
                self._free = max(self._free, time.monotonic()) + part / self.bandwidth
                end, self.given = self._free, self.given + part
            time.sleep(max(0.0, end - time.monotonic()))


@dataclass(frozen=True)
class FarStore(LocalStore):
    """Storage behind a link, in which every object has the same bytes."""

    data: bytes = b""
    link: Link = field(default_factory=lambda: Link(0, 1))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See ``Store``."""
        found = self.data[start : start + length]
        self.link.pass_through(len(found))
        return found


def make_shard(rows: int, shape: tuple[int, int, int] = SHAPE) -> bytes:
    """A latent shard of random moments."""
    moments = np.random.default_rng(0).standard_normal((2, rows, *shape), np.float32).astype(np.float16)
    labels = np.arange(rows)
    keys = [f"n01440764/n01440764_{row:08d}.JPEG" for row in range(rows)]
    hashes = np.zeros((rows, 32), np.uint8)
    return latent_shard_bytes(LatentShard(keys, labels, labels < 0, moments[0], moments[1], hashes))


def markers_of(data: bytes, count: int, rows: int) -> list[Marker[LatentShardFacts]]:
    """The markers of so many shards of these bytes."""
    known: dict[str, Any] = {"rows": rows, "seen": rows, "train_rows": rows, "bad": (), "moments_sha256": ""}
    known |= {"sum": (), "sum_squares": (), **index_facts(data)}
    sha256 = hashlib.sha256(data).hexdigest()
    return [
        Marker(
            key=f"latents/{number:05d}.parquet",
            bytes=len(data),
            sha256=sha256,
            facts=LatentShardFacts(shard=number, **known),
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Fetching:
    """The part of a training's task that reads rows: as ``DiTTask`` does."""

    rows: LatentRows

    def fetch(self, positions: NDArray[np.int64]) -> NDArray[np.float16]:
        """See ``Task``."""
        rows = rows_at(0, positions, len(self.rows.labels))
        return self.rows.take(rows, positions % self.rows.views)

    def batch(self, fetched: NDArray[np.float16]) -> NDArray[np.float16]:
        """See ``Task``."""
        return fetched


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    shards: int
    bandwidth: float
    """Bytes per second."""
    batch_size: int = 256
    step_seconds: float = 0.5
    latency: float = 0.02
    most: int | None = None
    """Bytes of latents that are copied."""


def train(
    setting: Setting, data: bytes, rows: int, cache: Path, is_over: Callable[[LatentRows, int], bool]
) -> dict[str, Any]:
    """Steps until ``is_over``, given the rows and the steps that are done."""
    link = Link(setting.latency, setting.bandwidth)
    store = FarStore("/far", data=data, link=link)
    whole = len(data) * setting.shards
    begun = time.monotonic()
    opened = open_latent_rows(store, markers_of(data, setting.shards, rows), "far", cache, most=setting.most)
    opening = time.monotonic() - begun
    task: Any = Fetching(opened)
    source: StepBatches[Any] = StepBatches(task, setting.batch_size)
    steps, first, given = 0, 0.0, 0
    batches = source.batches(0, 1 << 40)
    try:
        for _ in batches:
            time.sleep(setting.step_seconds)
            steps += 1
            if steps == 1:
                first, given = time.monotonic() - begun, link.given
            if is_over(opened, steps):
                break
    finally:
        opened.close()
        batches.close()
    seconds = time.monotonic() - begun - opening
    return {
        "gigabytes": round(whole / 1e9, 2),
        "megabytes_per_second": round(setting.bandwidth / 1e6),
        "open_seconds": round(opening, 2),
        "first_step_seconds": round(first, 2),
        "given_at_first_step": round(given / whole, 4),
        "steps": steps,
        "seconds": round(seconds, 1),
        "waited": round(source.waited / seconds, 4),
        "rows_from_storage": opened.read,
    }


def measure(arguments: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """All three figures."""
    data = make_shard(ROWS)
    shards = round(arguments.gigabytes * 1e9 / len(data))
    bandwidth, tenth = arguments.megabytes_per_second * 1e6, max(1, shards // 10)
    found: dict[str, Any] = {}
    runs: dict[str, tuple[Setting, Callable[[LatentRows, int], bool]]] = {
        "first step": (Setting(shards, bandwidth), lambda rows, steps: True),
        "until local": (Setting(tenth, bandwidth / 10), lambda rows, steps: rows.local == tenth),
        "never local": (Setting(tenth, bandwidth / 10, most=0), lambda rows, steps: steps == 20),
    }
    for name, (setting, is_over) in runs.items():
        found[name] = train(setting, data, ROWS, cache / name.replace(" ", "-"), is_over)
        print(name, found[name], flush=True)
    return found


def main() -> None:
    """Measures and writes what was found."""
    parser = argument_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=40.0, help="of the whole folder")
    parser.add_argument("--megabytes-per-second", type=float, default=1000.0, help="of the whole link")
    parser.add_argument("--quick", action="store_true", help="a small folder, which shows that it works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.gigabytes, arguments.megabytes_per_second = 2.0, 300.0
    with tempfile.TemporaryDirectory() as cache:
        found = measure(arguments, Path(cache))
    setting = Setting(0, 0)
    write_json(
        (TRIALS if arguments.quick else RESULTS) / NAME,
        {
            "machine": machine(),
            "assumed": {
                "latency_seconds": setting.latency,
                "step_seconds": setting.step_seconds,
                "batch_size": setting.batch_size,
                "row_bytes": 2 * int(np.prod(SHAPE)),
                "rows_per_shard": ROWS,
            },
            "runs": found,
        },
    )


if __name__ == "__main__":
    main()
