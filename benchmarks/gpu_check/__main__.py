"""What only an accelerator can show: that it computes the same as a CPU does, and how fast.

``python -m benchmarks.gpu_check`` (`make gpu-check`), about a quarter of an hour on one GPU, most of it
compiling; ``--parts`` names those to run. From the repository's root, since it reads tests/golden. It prints
a line for each check and figure, writes them to ``benchmarks/results/gpu-NAME.json`` (after each of them, so
that a run that is cut short leaves what it found), and ends with exit code 1 if a check fails. A part that
raises is a failed check, and the others still run. What the file says of parts that do not run now stays in
it, if it is of the same machine and versions.

*Checks* have a bound, all in float32 without TF32 unless their name says otherwise. *Figures* are throughput,
peak memory and MFU: 2 FLOPs per multiply-accumulate (`core.dit.macs`), three times that in training, over the
rate of a large bfloat16 matrix product measured in the same run on the same device; where the name says so,
over the data sheet's.

``--device cpu --quick`` runs everything at tiny sizes, to try the script itself.
"""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.cuda.nccl

from benchmarks import common
from benchmarks.common import RESULTS, argument_parser, write_json
from benchmarks.gpu_check.bench import FULL, QUICK, Bench, Report
from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.figures import FIGURES, peak_rate
from ray_dit.runtime.process import set_up_torch

T = TypeVar("T")


def run(
    bench: Bench,
    checks: Sequence[Callable[[Bench], None]] = CHECKS,
    figures: Sequence[Callable[[Bench, float], None]] = FIGURES,
) -> None:
    """These parts; one that raises is a failed check of its name."""
    for part in checks:
        _guarded(bench, part.__name__, lambda part=part: part(bench))
    if not figures:
        return
    peak = _guarded(bench, peak_rate.__name__, lambda: peak_rate(bench))
    for part in figures:
        _guarded(bench, part.__name__, lambda part=part: part(bench, math.nan if peak is None else peak))


def _guarded(bench: Bench, name: str, part: Callable[[], T]) -> T | None:
    """What the part gives; None where it raises."""
    started = time.perf_counter()
    bench.report.part = name
    try:
        return part()
    except Exception as error:  # whatever it is, it is a finding
        bench.report.failed(name, error)
        return None
    finally:
        bench.report.seconds[name] = round(time.perf_counter() - started, 1)


def _earlier(path: Path | None, machine: Mapping[str, Any]) -> Mapping[str, Any]:
    """The results that an earlier run wrote there, if they are of this machine."""
    if path is None or not path.exists():
        return {}
    results = json.loads(path.read_text())
    facts = results["machine"].keys() | machine.keys()
    is_same = all(results["machine"].get(name) == machine.get(name) for name in facts - {"load_average"})
    return results if is_same else {}


def machine(device: torch.device) -> dict[str, Any]:
    """Facts of the machine and of its GPU."""
    found = common.machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gib": round(properties.total_memory / 2**30),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts asked for; 1 if a check fails, else 0."""
    parser = argument_parser(__doc__, prog="python -m benchmarks.gpu_check")
    names = [part.__name__ for part in (*CHECKS, *FIGURES)]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; no results file unless --output")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, help="where to write the results")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "gpu-check: torch sees no GPU here; run it where there is one, or try the script with --device "
            "cpu --quick",
            file=sys.stderr,
        )
        return 2
    found, report = machine(device), Report()
    name = re.sub(r"[^a-z0-9]+", "-", str(found.get("gpu", device.type)).lower()).strip("-")
    path = arguments.output or (None if arguments.quick else RESULTS / f"gpu-{name}.json")

    before = _earlier(path, found)

    def save() -> None:
        if path is not None:
            write_json(path, {"machine": found, **report.results(before)})

    report.save = save

    bench = Bench(device, QUICK if arguments.quick else FULL, report)
    checks = [part for part in CHECKS if part.__name__ in arguments.parts]
    run(bench, checks, [part for part in FIGURES if part.__name__ in arguments.parts])
    save()  # what the last part took
    failed = sum(not check["holds"] for check in report.checks)
    print(f"{len(report.checks)} checks, {failed} failed; {len(report.figures)} figures")
    if path is not None:
        print(f"written to {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    set_up_torch(torch.get_num_threads())  # as actors and workers have it
    sys.exit(main())
