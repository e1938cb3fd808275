"""A command that is told to stop, by Ctrl-C or SIGTERM: it says so in a line and leaves nothing running."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.tiny import write_pictures, write_vae

ROOT = Path(__file__).parents[1]
VAE = ["--vae.block-out-channels", "4", "4", "--vae.norm-num-groups", "2"]
COMMANDS = {
    "encode": ["--vae", "vae", "--shard-size", "1"],
    "train-vae": [*VAE, "--steps", "100000", "--checkpoint-every", "20", "--log-every", "20"],
}
RESULTS = ("_markers/*.json", "checkpoints/*.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    write_pictures(folder / "images", {"left": 400, "right": 400})
    write_vae(folder / "vae")
    (folder / "home").mkdir()
    return folder


def start(place: Path, name: str, output: str) -> "subprocess.Popen[str]":
    given = ["--images.uri", "images", "--images.size", "16", "--output", output, *COMMANDS[name]]
    own = {"HOME": str(place / "home"), "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "ray_dit.cli", name, *given],
        cwd=place, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def stop(process: "subprocess.Popen[str]") -> str:
    """What it says after SIGTERM; nothing that it had started may be left a moment later."""
    started = family(process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert psutil.wait_procs(started, timeout=10)[1] == []
    return said


def await_result(folder: Path, process: "subprocess.Popen[str]") -> None:
    latest = time.monotonic() + 120
    while not any(list(folder.glob(pattern)) for pattern in RESULTS):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < latest
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.parametrize("name", COMMANDS)
def test_a_stage_that_is_stopped_says_so_in_a_line(name: str, place: Path) -> None:
    process = start(place, name, name)
    await_result(place / name, process)
    said = stop(process)
    assert process.returncode == 143, said
    *progress, last = said.strip().splitlines()
    assert last == "stopped; run the same command again, it goes on where it stopped"
    assert [line for line in progress if line and not line.startswith(f"{name}: ")] == []


@pytest.mark.ray
def test_while_ray_starts_it_stops_as_well(place: Path) -> None:
    process = start(place, "encode", "early")
    latest = time.monotonic() + 60
    while not any("gcs_server" in child.name() for child in family(process)) and time.monotonic() < latest:
        time.sleep(0.02)
    said = stop(process)
    assert (process.returncode, said.strip().splitlines()[-1][:8]) == (143, "stopped;"), said
    assert "Traceback" not in said
    assert "***" not in said


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_command_without_ray_stops_as_well(number: str, status: int) -> None:
    wait = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "from ray_dit.cli import commands, main\n"
        "commands.COMMANDS['info'] = commands.Command('', commands.settings.InfoConfig,"
        f" lambda _: os.kill(os.getpid(), signal.{number}), 'uri')\n"
        "main(['info', 'x'])"
    )
    ran = subprocess.run([sys.executable, "-c", wait], capture_output=True, text=True, cwd=ROOT)
    assert (ran.returncode, ran.stderr.strip()[:8]) == (status, "stopped;")
