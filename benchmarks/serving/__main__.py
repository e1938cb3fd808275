"""Latency and throughput of the image endpoint under open-loop load, beside an ideal and `@serve.batch`.

    python -m benchmarks.serving --device simulated   # an accelerator whose step of r rows takes a + b·r
    python -m benchmarks.serving --device cpu --model dit-s2    # DiT-S/2 with random weights; hours on a CPU
    python -m benchmarks.serving --device cpu --model FOLDER    # any model folder, such as the demo's
    --quick: a few minutes, for a look;  --again: only the latencies at --loads, into existing results

Everything is measured through HTTP and Ray Serve, on this machine. Requests arrive as a Poisson process (open
loop: they do not wait for each other), each of 1-4 images in 10, 20 or 50 steps, guided. The ideal gets the
same arrivals and the step times the engine measured, gives out steps by the same rule, and has no overhead of
any kind. On a CPU, which other programs slow down, its step times are the profile's, made at the start from
the fastest calls, times how much longer steps took during that load; the figure by the profile alone stands
beside. The baseline puts the same model and the same step function behind `@serve.batch`: a batch of requests
runs until its longest is done. Throughputs are measured in turns (bulk generation, ours, the baseline, and
again), so that a machine that gets slower does so for all.

Results: OUTPUT/serving-NAME.json, a table on the screen, and OUTPUT/serving-NAME.svg, latency against load.
"""

import json
import tempfile
from pathlib import Path

from benchmarks.common import RESULTS, TRIALS, argument_parser, write_json
from benchmarks.serving.bench import Bench, ray_here
from benchmarks.serving.models import random_model
from benchmarks.serving.report import drawing, table


def main() -> None:
    """Measures what the arguments ask for and writes the results."""
    parser = argument_parser(__doc__, prog="python -m benchmarks.serving")
    parser.add_argument("--device", choices=("simulated", "cpu"), default="simulated")
    parser.add_argument("--model", default="dit-s2", help="with --device cpu: dit-s2, or a model folder")
    parser.add_argument("--a", type=float, default=0.020, help="seconds of a step")
    parser.add_argument("--b", type=float, default=0.0004, help="seconds more per row")
    parser.add_argument("--seconds", type=float, default=60.0, help="least time of each measurement")
    parser.add_argument("--requests", type=int, default=400, help="least requests of each measurement")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8, 0.9])
    parser.add_argument("--waits", type=float, nargs="+", default=[0.05, 0.5, 1.5], help="of @serve.batch")
    parser.add_argument("--turns", type=int, default=3, help="times each throughput is measured")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of a replica")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.requests = min(arguments.seconds, 15.0), 40
        arguments.loads, arguments.waits, arguments.turns, arguments.output = [0.5, 0.8], [0.5], 1, TRIALS
    if arguments.device == "simulated":
        arguments.model = "small"
    name = "simulated" if arguments.device == "simulated" else f"cpu-{Path(arguments.model).name}"
    folder = arguments.output
    with tempfile.TemporaryDirectory() as scratch, ray_here() as port:
        preset = arguments.model
        uri = preset if preset not in ("small", "dit-s2") else random_model(Path(scratch) / "model", preset)
        bench = Bench(arguments, uri, port)
        there = folder / f"serving-{name}.json"
        result = bench.again(json.loads(there.read_text())) if arguments.again else bench.run()
    write_json(there, result)
    (folder / f"serving-{name}.svg").write_text(drawing(result))
    print(table(result))


if __name__ == "__main__":
    main()
