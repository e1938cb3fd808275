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
UNCOMPILED = ["golden", "parity", "noise", "repeatable", "unwaited", "collective", "served"]


def test_every_part_runs_and_holds_here(tmp_path: Path):
    results = tmp_path / "results.json"
    assert main(["--device", "cpu", "--quick", "--output", str(results), "--parts", *UNCOMPILED]) == 0
    found = json.loads(results.read_text())
    assert list(found["seconds"]) == UNCOMPILED
    assert all(check["holds"] for check in found["checks"])
    assert len(found["checks"]) == 17


def test_results_of_other_parts_stay_where_the_machine_is_the_same(tmp_path: Path):
    results = tmp_path / "results.json"

    def parts_after(*parts: str) -> list[str]:
        assert main(["--device", "cpu", "--quick", "--output", str(results), "--parts", *parts]) == 0
        return [check["part"] for check in json.loads(results.read_text())["checks"]]

    assert parts_after("noise") == ["noise", "noise"]
    assert parts_after("collective") == ["noise", "noise", "collective"]
    assert parts_after("noise") == ["collective", "noise", "noise"]
    found = json.loads(results.read_text())
    found["machine"]["torch"] = "another"
    results.write_text(json.dumps(found))
    assert parts_after("noise") == ["noise", "noise"]


def test_what_was_found_is_saved_before_the_part_ends():
    report, saved = Report(), list[int]()
    report.save = lambda: saved.append(len(report.checks) + len(report.figures))
    noise(Bench(CPU, QUICK, report))
    assert saved == [1, 2, 3]


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
