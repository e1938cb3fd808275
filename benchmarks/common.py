"""What the benchmarks share: where results go, facts of the machine, timing.

Knows nothing of what is measured.

Imports neither torch nor ray: some benchmarks measure the memory of processes without them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
"""Results that are committed."""
TRIALS = Path("bench")
"""Results of ``--quick`` runs, which only show that everything works."""


def argument_parser(description: str | None, *, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring as it is written.

    ``prog`` is what one types, for a package: its file, ``__main__.py``, does not say it.
    """
    return argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def machine() -> dict[str, Any]:
    """CPU model, cores, load (processes that ran or waited, mean of the last minute) and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": version("torch"),
        "ray": version("ray"),
    }


def write_json(path: Path, value: Any, *, sort_keys: bool = False) -> None:
    """Writes a result, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=sort_keys) + "\n")


def timed(
    call: Callable[[], object],
    *,
    repeats: int,
    warm_up: int = 2,
    synchronize: Callable[[], None] = lambda: None,
) -> list[float]:
    """Seconds of each of ``repeats`` calls after ``warm_up`` ones.

    ``synchronize`` waits for the device's work.
    """
    for _ in range(warm_up):
        call()
    seconds: list[float] = []
    for _ in range(repeats):
        synchronize()
        started = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


@dataclass(frozen=True)
class Sleeps:
    """The first two phases of a shard maker: nothing to read, and ``seconds`` in place of a GPU's work."""

    seconds: float

    def prepare(self, shard: int) -> int:
        """Nothing to read."""
        return shard

    def compute(self, inputs: int) -> int:
        """Sleeps."""
        time.sleep(self.seconds)
        return inputs


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)


def spread_of_ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the turns' quotients."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def in_turns(measure: Mapping[str, Callable[[int], float]], turns: int) -> dict[str, list[float]]:
    """Each measurement's figures, by name; all once, and all again, each given the number of the turn.

    A machine that gets slower, or is shared for a while, then does so for all of them.
    """
    figures: dict[str, list[float]] = {name: [] for name in measure}
    for turn in range(turns):
        for name, once in measure.items():
            figures[name].append(once(turn))
        print({name: round(values[-1], 4) for name, values in figures.items()}, flush=True)
    return figures
