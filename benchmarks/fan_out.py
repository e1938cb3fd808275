"""The fan-out beside its ideal.

The shards only sleep, on actors that start late or are slow, or are empty.

``python -m benchmarks.fan_out [--only CASE ...]``. Times are from the first actor's start of work to the last
marker; the ideal hands the same shards out with no delay to actors that are ready at the moments these were.
Actors import no torch, so a machine with few cores can start many. Prints a table and writes
``benchmarks/results/fan_out.json``.

``--generate MODEL``: instead, ``generate`` with one and with two actors, first to last marker, beside one and
two plain processes that make the same shards with the same code and no Ray. Whatever two processes gain on
this machine, which may have fewer cores than it says, two actors should gain too. Interleaved, ``--turns``
times; writes ``benchmarks/results/fan_out_generate.json``.
"""

import heapq
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Sleeps, argument_parser, machine, write_json
from ray_dit.config import GenerateConfig, ShardsConfig
from ray_dit.ledger.job import Job
from ray_dit.results import ShardFacts
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker
from ray_dit.runtime.shards import Work, make_shards
from ray_dit.storage.open import open_store


@dataclass(frozen=True)
class Case:
    """Shards of ``seconds`` on actors that start within ``start`` seconds.

    The first is ``slow`` times slower.
    """

    shards: int
    actors: int
    seconds: float
    start: float = 0.0
    slow: float = 1.0


CASES = {
    "late starts": Case(400, 8, 0.5, start=4.0),
    "equal actors": Case(200, 8, 0.5),
    "one actor three times slower": Case(200, 4, 0.5, slow=3.0),
    "empty shards": Case(3000, 4, 0.0),
}


@dataclass(frozen=True)
class Sleeper:
    """A maker of shards that sleep and say when they were begun."""

    case: Case
    folder: str

    def __call__(self) -> ShardMaker:
        number = len(list(Path(self.folder).glob("actor-*")))
        while True:
            try:
                (Path(self.folder) / f"actor-{number}").touch(exist_ok=False)
                break
            except FileExistsError:
                number += 1
        time.sleep(self.case.start * random.Random(number).random())
        (Path(self.folder) / f"actor-{number}").write_text(str(time.time()))
        seconds = self.case.seconds * (self.case.slow if number == 0 else 1.0)
        return Sleeping(seconds, number)


@dataclass(frozen=True)
class Sleeping(Sleeps):
    """Makes one shard after the other, each in so many seconds."""

    number: int

    def finish(self, outputs: int) -> Made:
        """A kilobyte, and when it was done."""
        said = {"shard": outputs, "actor": self.number, "end": time.time()}
        facts = ShardFacts.model_validate(said)
        return Made(f"data/{outputs:05d}", b"x" * 1000, facts)


def ideal(shards: int, ready: Sequence[float], seconds: Sequence[float]) -> float:
    """When the last shard is done if each goes to the worker that would have it done first."""
    ends = sorted((moment + took, took) for moment, took in zip(ready, seconds, strict=True))
    for _ in range(shards):
        end, took = ends[0]
        heapq.heapreplace(ends, (end + took, took))
    return max(end - took for end, took in ends)


def measure(ray: Any, case: Case) -> dict[str, Any]:
    """One run of a case."""
    with tempfile.TemporaryDirectory() as folder:
        starts = Path(folder) / "starts"
        starts.mkdir()
        config = ShardsConfig(output=f"{folder}/out", actors=case.actors)
        job = Job.open(open_store(config.output), "generate", {"made": "by a benchmark"})
        work = Work("benchmark", "shards", [1] * case.shards)
        make_shards(ray, config, job, Sleeper(case, str(starts)), work, set_up=lambda threads: None)
        markers = [marker.facts.to_json() for marker in job.markers(ShardFacts)]
        ready = [float((starts / f"actor-{number}").read_text()) for number in range(case.actors)]
        last = max(marker["end"] for marker in markers)
        took = [case.seconds * (case.slow if number == 0 else 1.0) for number in range(case.actors)]
        best = ideal(case.shards, ready, took) - min(ready)
        counts = [sum(marker["actor"] == number for marker in markers) for number in range(case.actors)]
        ends = [
            max((m["end"] for m in markers if m["actor"] == number), default=0)
            for number in range(case.actors)
        ]
    seconds = last - min(ready)
    return {
        "seconds": round(seconds, 2),
        "ideal": round(best, 2),
        "ratio": round(seconds / best, 3) if case.seconds else None,  # empty shards have no ideal
        "shards_per_second": round(case.shards / seconds, 1),
        "shards_by_actor": counts,
        "tail": round(last - min(end for end in ends if end), 2),
    }


def fan_out(names: Sequence[str], turns: int) -> None:
    """All cases, in turn."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ray_session(ShardsConfig(output="unused", num_cpus=16)) as ray:
        for _ in range(turns):
            for name in names:
                found[name].append(measure(ray, CASES[name]))
                print(f"{name}: {found[name][-1]}", flush=True)
    write("fan_out", {name: {"runs": runs, **middle(runs)} for name, runs in found.items()})


def middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the figures that are compared."""
    names = ("seconds", "ratio", "shards_per_second", "tail")
    return {
        f"median_{name}": statistics.median(run[name] for run in runs)
        for name in names
        if runs[0][name] is not None
    }


def plain(config: GenerateConfig, processes: int) -> float:
    """Seconds from the first to the last shard when ``processes`` without Ray share the shards."""
    code = (
        "import sys, json\n"
        "from ray_dit.config import GenerateConfig\n"
        "from benchmarks.fan_out import plain_worker\n"
        "plain_worker(GenerateConfig(**json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))\n"
    )
    given = config.model_dump_json(exclude_unset=True)
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            [sys.executable, "-c", code, given, str(number), str(processes)] for number in range(processes)
        ]
        started = [subprocess.Popen(command, env={**os.environ, "BENCH_OUT": folder}) for command in commands]
        if any(process.wait() for process in started):
            raise SystemExit("a plain process failed")
        return span(Path(folder) / "_markers")


def plain_worker(config: GenerateConfig, first: int, step: int) -> None:
    """Makes shards ``first``, ``first + step``, ... as an actor would, where the environment says."""
    from ray_dit.runtime.process import set_up_torch
    from ray_dit.runtime.shard_maker import make_shard, shard_name
    from ray_dit.stages.generate import settle
    from ray_dit.stages.painter import Painter

    set_up_torch(config.threads)
    plan = settle(config).plan
    painter = Painter(config, plan)
    job = Job.open(open_store(os.environ["BENCH_OUT"]), "generate", {"made": "by a benchmark"})
    for shard in plan.work.numbers[first::step]:
        made = make_shard(painter, shard)
        job.put(shard_name(shard), made.key, made.data, made.facts)


def span(markers: Path) -> float:
    """Seconds between the first and the last marker's writing."""
    times = [path.stat().st_mtime for path in markers.glob("*.json")]
    return max(times) - min(times)


def write(name: str, figures: dict[str, Any]) -> None:
    """The results file."""
    write_json(RESULTS / f"{name}.json", {"machine": machine(), **figures})
    print(json.dumps(figures, indent=1))


SHARD_SIZE = 50
"""Images per shard of the measured ``generate``: one batch. Two actors end up to one shard apart, as they
start apart, so the shards must be many for the span to show the rate."""


def generate_twice(model: str, images: int, turns: int) -> None:
    """``generate`` with one and two actors beside one and two plain processes, in turn."""
    from ray_dit.stages.generate import generate

    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for count in (1, 2):
                config = GenerateConfig(
                    model=model,
                    output=f"{folder}/{turn}-{count}",
                    num_images=images,
                    shard_size=SHARD_SIZE,
                    actors=count,
                )
                seconds.setdefault(f"{count} processes", []).append(plain(config, count))
                with ray_session(config):
                    generate(config)
                markers = Path(config.output) / "_markers"
                seconds.setdefault(f"{count} actors", []).append(span(markers))
                print(
                    {name: [round(value, 2) for value in values] for name, values in seconds.items()},
                    flush=True,
                )
    processes, actors = (
        [two / one for one, two in zip(seconds[f"1 {what}"], seconds[f"2 {what}"], strict=True)]
        for what in ("processes", "actors")
    )
    write(
        "fan_out_generate",
        {
            "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
            "two_over_one_processes": round(statistics.median(processes), 3),
            "two_over_one_actors": round(statistics.median(actors), 3),
            "ratio": round(statistics.median(a / p for a, p in zip(actors, processes, strict=True)), 3),
        },
    )


def main() -> None:
    """Parses options."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--generate", metavar="MODEL", help="a model folder, such as demo/model")
    parser.add_argument("--images", type=int, default=2400)
    options = parser.parse_args()
    if options.generate:
        generate_twice(options.generate, options.images, options.turns)
    else:
        fan_out(options.only, options.turns)


if __name__ == "__main__":
    main()
