"""What the actors beside the driver load: each start of a job waits for it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "ray_dit.runtime.coordinator",
        "ray_dit.folders.latent_counts",  # whose BadCount the coordinator is given
        "ray_dit.runtime.training.board",
        "ray_dit.results",
    ],
)
def test_no_torch_beside_the_driver(module: str) -> None:
    seen = f"import sys, {module}; sys.exit(bool({{'torch', 'ray', 'diffusers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", seen]).returncode == 0
