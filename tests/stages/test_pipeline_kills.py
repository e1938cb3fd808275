"""SIGKILL from outside, at random times in every stage: run again, the pipeline ends in the bytes of an undisturbed run.

Every stage runs as its own process with its own Ray, as a user would run it. The moment of the kill is drawn from a
seed; which stages it hit, and whether anything was lost, is checked on the files.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

STAGES = ("train-vae", "encode", "train", "generate", "evaluate")
SETTINGS = Path(__file__).with_name("pipeline.yaml")
SEED = int(os.environ.get("RAY_DIT_KILL_SEED", "0"))
RUN = """
import sys
from pathlib import Path
from ray_dit import cli
from jobs.demo import relocated
for stage in sys.argv[3].split(","):
    command = cli.COMMANDS[stage]
    command.run(relocated(cli.parse(stage, command.config, ["--config", sys.argv[1]]), sys.argv[2]))
    print("done", stage, flush=True)
"""


def write_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for label in ("left", "right"):
        (folder / label).mkdir(parents=True)
        for number in range(30):
            picture = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            picture[:, :8] += 150 if label == "left" else 0
            Image.fromarray(picture).save(folder / label / f"{number:02d}.png")


def start(folder: Path, stages: str, home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(SETTINGS), str(folder), stages],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(folder: Path, stages: str, home: Path) -> None:
    process = start(folder, stages, home)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]


def kill_during(folder: Path, stage: str, home: Path, after: float) -> bool:
    """Kills the stage and everything it started, ``after`` seconds past its first result; False if it was done before."""
    process = start(folder, stage, home)
    begun = time.monotonic()
    while not wrote(folder, stage) and process.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.02)
    time.sleep(after)
    alive = process.poll() is None
    family = (
        [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        if alive
        else []
    )
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate()
    return alive


OUTPUT = {
    "train-vae": "vae",
    "encode": "latents",
    "train": "run",
    "generate": "dataset",
    "evaluate": "evaluation",
}


def wrote(folder: Path, stage: str) -> bool:
    """Whether the stage has results that a run after the kill can go on from: a checkpoint, a finished shard."""
    output = folder / OUTPUT[stage]
    return any(output.glob("checkpoints/*.safetensors")) or any(output.glob("_markers/*.json"))


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file that has no clock in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_runs" not in path.parts
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_pictures(folder / "images")
    finish(folder, ",".join(STAGES), tmp_path_factory.mktemp("home"))
    return folder


def test_killed_in_every_stage_and_run_again(undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    home, folder = tmp_path / "home", tmp_path / "killed"
    home.mkdir()
    write_pictures(folder / "images")
    hit: dict[str, int] = {}
    for stage in STAGES:
        after = chance.uniform(0.0, 1.5)
        hit[stage] = kill_during(folder, stage, home, after)
        print(f"{stage}: killed {after:.2f} s after its first result: {bool(hit[stage])}")
        finish(folder, stage, home)
    whole, killed = contents(undisturbed), contents(folder)
    assert killed.keys() == whole.keys()
    assert [name for name in whole if whole[name] != killed[name]] == [], f"seed {SEED}"
    assert sum(hit.values()) >= 3, hit


def test_running_it_again_writes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}

    before = times()
    finish(undisturbed, ",".join(STAGES), tmp_path)
    assert times() == before
