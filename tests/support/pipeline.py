"""A whole pipeline small enough to be killed in every stage, each run as its own process with its own Ray."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

STAGES = ("train-vae", "encode", "train", "generate", "evaluate")
ROOT = Path(__file__).parents[2]
SETTINGS = Path(__file__).with_name("pipeline.yaml")
RUN = """
import sys
from ray_dit import cli
from jobs.demo import relocated
for stage in sys.argv[3].split(","):
    command = cli.COMMANDS[stage]
    words = ["--config", sys.argv[1], *sys.argv[4:]]
    command.run(relocated(cli.parse(stage, command.config, words), sys.argv[2]))
    print("done", stage, flush=True)
"""


def write_images(folder: Path) -> None:
    """30 images of each of two classes, 16 x 16: noise, bright on the left half or dark all over."""
    generator = np.random.default_rng(0)
    for label in ("left", "right"):
        (folder / label).mkdir(parents=True)
        for number in range(30):
            image = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            image[:, :8] += 150 if label == "left" else 0
            Image.fromarray(image).save(folder / label / f"{number:02d}.png")


def start(
    folder: Path | str, stages: str, home: Path, *options: str, **environment: str
) -> subprocess.Popen[bytes]:
    """Starts a process that runs ``stages`` (names with commas) on what lies below ``folder``.

    ``options`` of the command line win over the settings.
    """
    own = {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(SETTINGS), str(folder), stages, *options],
        cwd=ROOT,
        env=os.environ | own | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(folder: Path | str, stages: str, home: Path, *options: str, **environment: str) -> None:
    """Runs ``stages`` to their end; AssertionError with what they said if one fails."""
    process = start(folder, stages, home, *options, **environment)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]
