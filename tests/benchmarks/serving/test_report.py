"""The committed results have the checks and the drawing that their figures make."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.common import RESULTS
from benchmarks.serving.report import drawing, table, with_checks

COMMITTED = sorted(RESULTS.glob("serving-*.json"))


def shown(svg: str) -> tuple[list[str], list[str]]:
    """The corners of its lines, and its words."""
    return re.findall(r'points="([^"]*)"', svg), re.findall(r">([^<]+)<", svg)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_checks_and_drawings_are_those_of_their_figures(path: Path) -> None:
    result = json.loads(path.read_text())
    assert with_checks(result) == result
    assert shown(drawing(result)) == shown(path.with_suffix(".svg").read_text())


def test_the_table_has_a_row_per_load_and_per_check() -> None:
    result = json.loads((RESULTS / "serving-simulated.json").read_text())
    lines = table(result).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:7]] == ["30%", "50%", "70%", "80%", "90%"]
    assert len(lines) == 2 + 5 + 3 + len(result["checks"])


def test_checks_are_medians_at_their_loads_beside_the_best_of_the_baseline() -> None:
    loads = [
        {"load": 0.5, "p95_over_ideal": 1.5, "short_p95": 0.5},
        {"load": 0.8, "p95_over_ideal": 1.25, "short_p95": 9.0},
    ]
    rates = {"bulk": [1.0, 8.0, 100.0], "saturation": [6.0], "baseline": [3.0, 2.0, 4.0]}
    result = {
        "rows_per_second": rates,
        "loads": loads,
        "short_alone": 2.0,
        "short_beside_long": 5.0,
        "baseline": {"tried": [{"short_p95": 7.0}, {"short_p95": 4.0}]},
    }
    assert list(with_checks(result)["checks"].values()) == [1.25, 0.75, 2.0, 8.0, 2.5]
