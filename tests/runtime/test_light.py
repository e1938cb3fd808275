"""What actors load before they are set up: each start of a job waits for it."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "diffusers")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ray_dit.runtime.coordinator", (*HEAVY, "numpy", "pyarrow")),
        ("ray_dit.runtime.shard_actor", ("torch", "diffusers", "numpy", "pyarrow")),
        ("ray_dit.folders.latent_counts", HEAVY),  # whose BadCount the coordinator is given
        ("ray_dit.runtime.training.board", HEAVY),
        ("ray_dit.results", HEAVY),
    ],
)
def test_what_is_heavy_is_not_loaded(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
