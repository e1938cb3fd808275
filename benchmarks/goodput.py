"""What is left of a training's speed when its workers are killed again and again.

``python -m benchmarks.goodput [--folder demo] [--turns 3] [--checkpoints 2]`` (about 25 minutes on 2 cores)
trains the demo's model on the demo's latents, which it makes where `make demo` has not. Each turn trains
undisturbed and then, with the same settings, with one of the workers killed (SIGKILL) after every second
checkpoint. *Goodput* is the undisturbed time over the disturbed one, both from the first checkpoint to the
last. A kill costs the time until the workers train again, and the steps since the last checkpoint. The
weights of both must be the same, byte by byte.

At the end it computes what that means for DiT-XL/2 by the costs that were measured here and those named in
``assumed``: with a mean time of M between failures, a checkpoint every I seconds that stalls the loop for S,
and R seconds until the workers train again, goodput is I / (I + S) x (1 - (R + I / 2) / M). Results go to
``benchmarks/results/goodput.json``.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.common import RESULTS, TRIALS, argument_parser, machine, spread, write_json
from benchmarks.what_it_takes import memory_of
from jobs.demo import write_digits
from ray_dit.config import DiTConfig
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.formats.model_folder import WEIGHTS_KEY
from ray_dit.storage.open import open_store

SETTINGS = "jobs/demo.yaml"
RUN = """
import sys
from jobs.demo import relocated
from ray_dit import cli
_, settings, folder, stage, *options = sys.argv
command = cli.COMMANDS[stage]
command.run(relocated(cli.parse(stage, command.config, ["--config", settings, *options]), folder))
"""
WORKER = "RayTrainWorker"
"""How the name of Ray Train's workers' processes begins, after `ray::`."""
LOOK = 0.05
"""Seconds between two looks for a new checkpoint."""
SECONDS_AFTER = 2.0
"""A kill comes at once after a checkpoint, or once or twice so much later."""

HOURS = 2.0
"""Mean time to failure that DiT-XL/2 is computed for."""
INTERVALS = (60.0, 120.0, 300.0)
"""Seconds between its checkpoints."""
STATE = ("weights", "averaged weights", "moments")
"""The parts of a worker's memory that a checkpoint holds."""
TO_HOST = 12e9
"""Bytes per second from an accelerator's memory to the host's: pageable memory over PCIe 5."""
FROM_STORAGE = 1e9
"""Bytes per second at which a checkpoint is read."""
COMPILING = 30.0
"""Seconds until a compiled network runs, with compiled code in a cache on disk."""


@dataclass(frozen=True)
class Trained:
    """A training from its first checkpoint to its last."""

    seconds: float
    kills: int
    redone: float
    """Seconds' worth of steps that were lost, of those between a checkpoint and the kill."""
    stalled: float
    """Seconds that the loop waited for checkpoints, all of them, since the last start."""
    weights: bytes
    """Of the model."""


def run_stage(folder: Path, stage: str, *options: str) -> "subprocess.Popen[bytes]":
    """Starts a stage of the demo as a process of its own, with its own Ray."""
    return subprocess.Popen([sys.executable, "-c", RUN, SETTINGS, str(folder), stage, *options])


def make_latents(folder: Path) -> None:
    """What the training reads."""
    write_digits(f"{folder}/images")
    for stage in ("train-vae", "encode"):
        if run_stage(folder, stage).wait():
            sys.exit(f"{stage} has failed, and says above why")


def train(folder: Path, output: Path, *, last: int, every: int | None = None) -> Trained:
    """Trains the demo's model to the checkpoint of step ``last``.

    A worker is killed a few seconds after every ``every``-th checkpoint.
    """
    options = ["--output", str(output / "run"), "--model-output", str(output / "model")]
    process = run_stage(folder, "train", *options)
    store = open_store(str(output / "run"))
    begun = ended = seen_at = redone = 0.0
    seen = kills = since_kill = 0
    while process.poll() is None:
        time.sleep(LOOK)
        newest = max(checkpoint_steps(store), default=0)
        if newest > seen:
            seen, seen_at, since_kill = newest, time.monotonic(), since_kill + 1
            begun, ended = begun or seen_at, seen_at
        is_time = time.monotonic() - seen_at > SECONDS_AFTER * (kills % 3)
        if every and since_kill >= every and newest < last and is_time:
            kill_worker(process.pid)
            redone += time.monotonic() - seen_at
            kills, since_kill = kills + 1, 0
    if process.returncode:
        sys.exit(f"the training ended with status {process.returncode}, and says above why")
    stalled = [json.loads(path.read_text())["checkpoint_stall_seconds"] for path in output.rglob("end.json")]
    weights = (output / "model" / WEIGHTS_KEY).read_bytes()
    return Trained(ended - begun, kills, redone, stalled[-1], weights)


def kill_worker(driver: int) -> None:
    """Kills one of the workers of the training that ``driver`` runs."""
    for child in psutil.Process(driver).children(recursive=True):
        if WORKER in " ".join(child.cmdline()):
            child.kill()
            return
    sys.exit("no worker of Ray Train was found below the training's process")


def goodput(*, interval: float, stall: float, restart: float, between: float) -> float:
    """The share of its time that a training uses for steps which it need not do again; see above."""
    return interval / (interval + stall) * (1 - (restart + interval / 2) / between)


def computed(restart: float) -> dict[str, Any]:
    """What this restart means for DiT-XL/2, whose state is larger, by the interval between checkpoints."""
    parts = memory_of(DiTConfig.preset("DiT-XL/2", input_size=32))
    state = sum(parts[name] for name in STATE)
    stall, restart = state / TO_HOST, restart + state / FROM_STORAGE + COMPILING
    shares = {
        f"{interval:.0f} s": round(
            goodput(interval=interval, stall=stall, restart=restart, between=3600 * HOURS), 4
        )
        for interval in INTERVALS
    }
    return {"state bytes": state, "stall": stall, "restart": restart, "goodput by interval": shares}


def median_of(turns: Sequence[tuple[Trained, Trained]]) -> tuple[float, float]:
    """Seconds that a restart takes, and that a checkpoint stalls: medians of the turns."""
    restarts = [(ill.seconds - well.seconds - ill.redone) / ill.kills for well, ill in turns]
    return statistics.median(restarts), statistics.median(well.stalled for well, _ in turns)


def main() -> None:
    """Measures, computes, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="of the demo; made where it is missing"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, default=2, help="between two kills")
    parser.add_argument("--quick", action="store_true", help="one turn, to see that it works")
    arguments = parser.parse_args()
    settings = yaml.safe_load(Path(SETTINGS).read_text())["train"]
    turns: list[tuple[Trained, Trained]] = []
    folder = arguments.folder.absolute()  # Ray's workers have working folders of their own
    make_latents(folder)
    for _ in range(1 if arguments.quick else arguments.turns):
        with tempfile.TemporaryDirectory() as name:
            well = train(folder, Path(name, "well"), last=settings["steps"])
            ill = train(folder, Path(name, "ill"), last=settings["steps"], every=arguments.checkpoints)
        if well.weights != ill.weights:
            sys.exit("the weights of the training that was killed are not those of the undisturbed one")
        turns.append((well, ill))
        print(f"{well.seconds:.1f} s undisturbed, {ill.seconds:.1f} s with {ill.kills} kills", flush=True)
    measured = spread([well.seconds / ill.seconds for well, ill in turns])
    restart, stall = median_of(turns)
    result = {
        "machine": machine(),
        "measured": {
            "goodput, lowest and highest": measured,
            "seconds between kills": statistics.median(ill.seconds / ill.kills for _, ill in turns),
            "restart": restart,
            "stalled in all": stall,
            "turns": [
                [
                    {
                        "seconds": each.seconds,
                        "kills": each.kills,
                        "redone": each.redone,
                        "stalled": each.stalled,
                    }
                    for each in pair
                ]
                for pair in turns
            ],
        },
        "assumed": {
            "hours to failure": HOURS,
            "bytes per second to the host": TO_HOST,
            "bytes per second from storage": FROM_STORAGE,
            "seconds to compile": COMPILING,
        },
        "computed for DiT-XL/2": computed(restart),
    }
    print(json.dumps(result, indent=1))
    write_json((TRIALS if arguments.quick else RESULTS) / "goodput.json", result)


if __name__ == "__main__":
    main()
