"""The file of measured cells."""

from pathlib import Path

from benchmarks.cost_of_quality.cells import Cells
from benchmarks.cost_of_quality.plan import Cell
from ray_dit.config import SamplerConfig
from tests.benchmarks.cost_of_quality.examples import kept


def test_cells_come_back_from_their_file_the_last_of_equal_keys(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "new" / "cells.jsonl")
    assert cells.read() == {}
    cell = Cell(SamplerConfig(), 7, "float32")
    for key_of, distance in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        cells.add(cell, key_of, kept(distance))
    assert cells.read() == {"a": kept(3.0), "b": kept(2.0)}
