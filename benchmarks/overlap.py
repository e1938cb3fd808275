"""How much of the slower phase is left when an actor reads, computes and stores at once.

``python -m benchmarks.overlap [--turns 7] [--only PART ...]``. The accelerator is simulated: computing
sleeps, so that it takes no processor. Everything else is real: JPEGs of 500x375 decoded and cropped by
`encode`'s own code, from a folder or from an S3 server behind 20 ms of latency; images of 256 pixels
compressed by `generate`'s.

A case sets the accelerator to 0.5, 1 or 2 times the rate of the processor's part: that of decoding bytes in
memory, or of compressing. Its reference is the slower of two plain loops: reading and decoding one image
after the other (or compressing), in this process and with the same client, and the sleeping alone. Each
turn measures, one after the other, the loops, in the first turn the actor with nothing overlapped (one shard
under way, whose images are read and decoded in turn), and the actor as `encode` and `generate` run it, with
one thread that decodes. The figures are the reference over what the actor took: 1 is as fast as the slower
part by itself, more means that the latency of storage is hidden too, which the plain loop waits for.
``overlapped`` and ``one_at_a_time`` are those of the steady state, from the end of the first shard to that of
the last; ``whole`` is from the begin of the first one, which has nothing to overlap with, nor has the end of
the last: of 16 shards that is 3 %, of a job's thousands nothing. ``of_decoding`` is ``overlapped`` with
nothing but decoding and sleeping in the reference. Medians and spread of the turns are printed and written
to ``benchmarks/results/overlap.json``.
"""

import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from benchmarks.common import RESULTS, TRIALS, argument_parser, machine, write_json
from benchmarks.one_actor import through
from jobs.local_s3 import CREDENTIALS, make_bucket, start_seaweed
from ray_dit.config import ImagesConfig, ShardsConfig
from ray_dit.core.media import decode_image, png
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.loading import Loader
from ray_dit.folders.reading import decoded, fetched, load_images
from ray_dit.folders.sources import store_of_images
from ray_dit.results import ShardFacts
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker, shard_name
from ray_dit.storage.open import open_store

SHARDS, SIZE = 16, 256
ROWS, LATE_ROWS, PNG_ROWS = 256, 16, 64
"""Images of a shard in a folder, behind latency, and to be compressed: about half a second each. `encode` and
`generate` have a thousand; storing a shard and asking for the next takes the processor some 10 ms."""
BESIDE = 1
"""Turns that also measure the actor that overlaps nothing, which takes longest and is there to compare."""
DECODE_THREADS = 1
"""The second processor is for the rest."""
LATENCY = 0.02
RATES = (0.5, 1.0, 2.0)
"""Of the accelerator, in those of the processor's part."""


@dataclass(frozen=True)
class Reading:
    """The processor's part of `encode`: images read, decoded and cropped."""

    plan: ImagePlan
    rows: int

    def loader(self) -> Any:
        """What reads and decodes as `encode` does, for several shards."""
        return Loader(DECODE_THREADS)

    def before(self, shard: int, loader: Any = None) -> Any:
        """Reads and decodes the shard's images; without ``loader`` one after the other."""
        rows = range(shard * self.rows, (shard + 1) * self.rows)
        return len(load_images(self.plan, rows)[1] if loader is None else loader.load(self.plan, rows).kept)

    def after(self, rows: int) -> bytes:
        """Next to nothing."""
        return b"x" * rows

    def processing(self, shards: int) -> float:
        """Seconds that decoding alone takes per shard: of bytes in memory."""
        store = store_of_images(self.plan.uri)
        some = [fetched(self.plan, store, row) for row in range(self.rows)]
        begun = time.monotonic()
        for _ in range(shards):
            for row, data in enumerate(some):
                assert isinstance(data, bytes)
                decoded(self.plan, row, data, decode_image)
        return (time.monotonic() - begun) / shards


@dataclass(frozen=True)
class Writing:
    """The processor's part of `generate`: images as PNG."""

    seed: int = 0

    def loader(self) -> Any:
        """None."""
        return None

    def before(self, shard: int, loader: Any = None) -> int:
        """Nothing."""
        return PNG_ROWS

    def after(self, rows: int) -> bytes:
        """PNG files of noisy images, which compress as photographs do."""
        chance = np.random.default_rng(self.seed)
        smooth = np.linspace(0, 200, SIZE)[:, None, None] + np.linspace(0, 40, SIZE)[None, :, None]
        images = (smooth + chance.normal(0, 4, (8, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
        return b"".join(png(images[row % 8]) for row in range(rows))

    def processing(self, shards: int) -> float:
        """Seconds that compressing takes per shard."""
        return alone(self, shards)


@dataclass(frozen=True)
class Build:
    """Makes a maker whose accelerator sleeps ``seconds`` per shard."""

    part: Reading | Writing
    seconds: float
    ahead: bool
    """Whether images are read ahead, by threads."""

    def __call__(self) -> ShardMaker:
        return Simulated(self)


class Simulated:
    """Does the processor's part and sleeps for the accelerator's."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._loader = build.part.loader() if build.ahead else None

    def prepare(self, shard: int) -> Any:
        """Reads."""
        return shard, self._build.part.before(shard, self._loader)

    def compute(self, inputs: tuple[int, Any]) -> tuple[int, Any]:
        """Sleeps."""
        time.sleep(self._build.seconds)
        return inputs

    def finish(self, outputs: tuple[int, Any]) -> Made:
        """Compresses."""
        shard, rows = outputs
        data = self._build.part.after(rows)
        return Made(f"data/{shard_name(shard)}", data[:1000], ShardFacts(shard=shard))


def alone(part: Reading | Writing, shards: int) -> float:
    """Seconds the processor's part takes in a plain loop, per shard."""
    part.after(part.before(0))
    begun = time.monotonic()
    for shard in range(shards):
        part.after(part.before(shard))
    return (time.monotonic() - begun) / shards


def measure(ray: Any, part: Reading | Writing, rate: float, shards: int, *, beside: bool) -> dict[str, float]:
    """One turn of a case; ``beside``: with the actor that overlaps nothing."""
    processing, loop = part.processing(shards), alone(part, shards)
    seconds = processing / rate
    reference = max(loop, seconds)
    compared: dict[str, float] = {}
    config = ShardsConfig(output="unused", actors=1)
    if beside:
        one = through(ray, config, Build(part, seconds, ahead=False), shards, lanes=1)
        compared["one_at_a_time"] = round(reference / one.steady, 3)
    three = through(ray, config, Build(part, seconds, ahead=True), shards)
    return {
        "processing": round(processing, 4),
        "loop": round(loop, 4),
        "accelerator": round(seconds, 4),
        "overlapped": round(reference / three.steady, 3),
        "whole": round(reference / three.whole, 3),
        "of_decoding": round(max(processing, seconds) / three.steady, 3),
        **compared,
    }


def photographs(folder: Path, count: int) -> None:
    """JPEGs of 500x375 with the detail of photographs, in two classes."""
    chance = np.random.default_rng(0)
    for number in range(count):
        coarse = chance.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(coarse).resize((500, 375), PIL.Image.Resampling.BICUBIC)
        sink = io.BytesIO()
        image.save(sink, format="JPEG", quality=90)
        path = folder / f"class-{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue())


def parts(stack: ExitStack, folder: Path, shards: int) -> dict[str, Reading | Writing]:
    """What is measured, by name; starts an S3 server and a proxy that answers late."""
    from tests.support.proxy import FaultProxy

    photographs(folder / "images", shards * ROWS)
    here = plan_images(ImagesConfig(uri=str(folder / "images"), size=SIZE))
    endpoint, stop = start_seaweed(folder / "s3")
    stack.callback(stop)
    make_bucket(endpoint, "bench")
    os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
    store = open_store("s3://bench/images")
    for key in here.keys:
        store.put(key, (folder / "images" / key).read_bytes())
    late = FaultProxy(endpoint, rate=1.0, kinds=("latency",), per_target=10**9, latency_seconds=LATENCY)
    os.environ["AWS_ENDPOINT_URL"] = stack.enter_context(late).endpoint
    there = plan_images(ImagesConfig(uri=store.uri, size=SIZE))
    return {
        "encode, folder": Reading(here, ROWS),
        "encode, S3 at 20 ms": Reading(there, LATE_ROWS),
        "generate": Writing(),
    }


def summary(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians of the turns, and the spread of what counts."""
    median = {name: statistics.median(turn[name] for turn in turns if name in turn) for name in turns[0]}
    overlapped = sorted(turn["overlapped"] for turn in turns)
    return {**median, "overlapped_least": overlapped[0], "overlapped_most": overlapped[-1]}


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", nargs="*", help="these parts only, such as generate")
    parser.add_argument("--quick", action="store_true", help="a turn of four shards, to see that it works")
    parser.add_argument("--shards", type=int, default=SHARDS, help="fewer: filling and draining count more")
    arguments = parser.parse_args()
    turns, shards = (1, 4) if arguments.quick else (arguments.turns, arguments.shards)
    found: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = parts(stack, folder, shards)
        ray = stack.enter_context(ray_session(ShardsConfig(output="unused", num_cpus=4)))
        for number in range(turns):
            for name in arguments.only or measured:
                for rate in RATES:
                    turn = measure(ray, measured[name], rate, shards, beside=number < BESIDE)
                    found.setdefault(f"{name}, accelerator at {rate}", []).append(turn)
                    print(f"{name}, accelerator at {rate}: {turn}", flush=True)
    result = {
        "machine": machine(),
        "shards": shards,
        "cases": {name: {**summary(runs), "turns": runs} for name, runs in found.items()},
    }
    write_json((RESULTS if shards == SHARDS else TRIALS) / "overlap.json", result)
    print(json.dumps({name: summary(runs) for name, runs in found.items()}, indent=1))


if __name__ == "__main__":
    main()
