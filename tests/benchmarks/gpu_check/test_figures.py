"""The figures are what their names say.

In a process of its own, as they compile, which the checks of shapes that tests install do not allow.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check.bench import QUICK, TINY
from ray_dit.config import DiTConfig
from ray_dit.core.dit import macs

GENERATED = DiTConfig(input_size=4, patch_size=2, hidden_size=16, depth=1, num_heads=1)
"""The shape of the model that quick runs generate with."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    results = tmp_path_factory.mktemp("figures") / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick"]
    command += ["--output", str(results), "--parts", "training", "generation"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    found = json.loads(results.read_text())["figures"]
    return {part: [row for row in found if row["part"] == part] for part in {row["part"] for row in found}}


def test_mfu_of_generating_counts_two_rows_per_image_and_step(figures: dict[str, list[dict[str, Any]]]):
    (peak,) = figures["peak_rate"]
    eager, compiled = figures["generation"]
    flops_per_image = 2 * macs(GENERATED) * 2 * QUICK.sampler_steps
    for row in (eager, compiled):
        share = row["without_decoding"] * flops_per_image / (peak["tflops"] * 1e12)
        assert row["mfu_without_decoding"] == pytest.approx(share, rel=3e-3)
        assert row["images_per_second"] < row["without_decoding"]


def test_mfu_of_training_counts_three_times_a_forward_pass(figures: dict[str, list[dict[str, Any]]]):
    (peak,) = figures["peak_rate"]
    rows = figures["training"]
    assert len(rows) == 4
    for row in rows:
        assert row["tflops"] * 1e12 == pytest.approx(row["samples_per_second"] * 6 * macs(TINY), rel=3e-3)
        assert row["mfu"] == pytest.approx(row["tflops"] / peak["tflops"], rel=3e-3)
