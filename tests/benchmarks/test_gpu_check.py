"""The GPU's check, on a CPU and at tiny sizes: that every part runs, and that a check can fail."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import QUICK, Bench, Report, deviation, main, noise, parity, random_dit, run
from ray_dit.config import DiTConfig
from ray_dit.core.dit import DiT

CPU = torch.device("cpu")
# without the parts that compile: tests/core compiles, and it takes half a minute
UNCOMPILED = ["golden", "parity", "noise", "repeatable", "collective", "sampling", "training", "vae"]


def test_every_part_runs_and_holds_here(tmp_path: Path):
    results = tmp_path / "results.json"
    assert main(["--device", "cpu", "--quick", "--output", str(results), "--parts", *UNCOMPILED]) == 0
    found = json.loads(results.read_text())
    assert list(found["seconds"]) == UNCOMPILED
    assert all(check["holds"] for check in found["checks"])
    assert len(found["checks"]) == 14
    assert {"images_per_second", "samples_per_second"} <= {key for row in found["figures"] for key in row}


@pytest.mark.parametrize(("value", "holds"), [(1e-6, True), (1e-4, False), (math.nan, False)])
def test_a_check_holds_up_to_its_bound(value: float, holds: bool):
    report = Report()
    report.check("something", value, 1e-5)
    assert report.checks[0]["holds"] is holds


def test_a_wrong_network_fails():
    def off_by_little(config: DiTConfig) -> DiT:
        model = random_dit(config)
        model.final_layer.linear.bias += 1e-3
        return model

    report = Report()
    run(Bench(CPU, QUICK, report, off_by_little), [parity], [])
    assert [check["check"] for check in report.checks if not check["holds"]] == ["float32 against the CPU"]


def test_a_part_that_raises_is_a_failed_check_and_the_rest_runs():
    def broken(bench: Bench) -> None:
        raise RuntimeError("no kernel image")

    report = Report()
    run(Bench(CPU, QUICK, report), [broken, noise], [])
    assert (report.checks[0]["check"], report.checks[0]["error"]) == (
        "broken",
        "RuntimeError: no kernel image",
    )
    assert [check["holds"] for check in report.checks] == [False, True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_deviation_is_by_the_largest_magnitude():
    assert deviation(torch.tensor([1.0, -3.9]), torch.tensor([1.0, -4.0])) == pytest.approx(0.025)
