"""The GPU's check, on a CPU and at tiny sizes: every part runs, also after one that raises."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check.__main__ import main, run
from benchmarks.gpu_check.bench import QUICK, Bench, Report
from benchmarks.gpu_check.checks import noise

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
