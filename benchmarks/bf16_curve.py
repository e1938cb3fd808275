"""How far the losses of a bfloat16 training lie from those of a float32 one, over the demo's whole training.

``python -m benchmarks.bf16_curve [--folder demo]`` (about ten minutes on 2 cores) trains the demo's model on
the demo's latents, which it makes where `make demo` has not: in float32, in bfloat16 with the same samples
and noise, and, to have a scale, in float32 with another seed (other initial weights, order, t and noise).
Per point of the curve it compares the mean loss since the point before, and the validation loss where there
is one. Results go to ``benchmarks/results/bf16_curve.json``.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, TRIALS, argument_parser, machine, spread, write_json
from benchmarks.goodput import make_latents, run_stage
from ray_dit.folders.loss_curve import read_loss_curve
from ray_dit.ledger.manifest import read_manifest
from ray_dit.results import TrainingResult
from ray_dit.storage.open import open_store

RUNS = {
    "float32": (),
    "bfloat16": ("--precision", "bfloat16"),
    "another seed": ("--seed", "1"),
}
"""The trainings, and how each differs from the demo's."""
COMPARED = ("loss", "validation_loss")

Curve = Sequence[Mapping[str, Any]]


def curve_of(folder: Path, output: Path, options: Sequence[str]) -> Curve:
    """Trains as the demo does, with ``options`` too; the points of its loss curve."""
    run, model = str(output / "run"), str(output / "model")
    if run_stage(folder, "train", "--output", run, "--model-output", model, *options).wait():
        sys.exit("the training has failed, and says above why")
    training = read_manifest(run, TrainingResult)
    return read_loss_curve(open_store(run), training.generation, training.facts.history)


def differences(exact: Curve, other: Curve, name: str) -> list[float]:
    """Relative differences of all points that have it."""
    return [abs(b[name] / a[name] - 1) for a, b in zip(exact, other, strict=True) if name in a]


def main() -> None:
    """Trains, compares, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of the demo; made where missing")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()  # Ray's workers have working folders of their own
    make_latents(folder)
    few = ("--steps", "20", "--log-every", "10", "--checkpoint-every", "10") if arguments.quick else ()
    with tempfile.TemporaryDirectory() as name:
        curves = {run: curve_of(folder, Path(name, run), (*few, *options)) for run, options in RUNS.items()}
    exact = curves.pop("float32")
    compared = {
        f"{run}, {kind}: median, lowest, highest": spread(differences(exact, curve, kind))
        for run, curve in curves.items()
        for kind in COMPARED
    }
    print(json.dumps(compared, indent=1))
    result = {"machine": machine(), "relative difference from float32": compared}
    result["curves"] = {"float32": exact, **curves}
    write_json((TRIALS if arguments.quick else RESULTS) / "bf16_curve.json", result)


if __name__ == "__main__":
    main()
