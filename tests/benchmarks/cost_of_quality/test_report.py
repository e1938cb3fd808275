"""The table, the plot and what is left."""

from pathlib import Path

import torch

from benchmarks.cost_of_quality.judge import Truth
from benchmarks.cost_of_quality.outcomes import outcomes
from benchmarks.cost_of_quality.plan import Task, plan
from benchmarks.cost_of_quality.report import markdown, outlook, plot, write_results
from ray_dit.core.metrics import FeatureStatistics
from tests.benchmarks.cost_of_quality.examples import some_cells


def truth() -> Truth:
    real = FeatureStatistics.of(torch.tensor([[0.0], [1.0]]))
    return Truth(b"", real, real, 0.98, 1)


def test_the_table_shows_steps_rows_difference_and_what_is_missing() -> None:
    ours, cells = some_cells()
    text = markdown(cells, ours, truth())
    lines = [line for line in text.splitlines() if line.startswith("| d")]
    assert lines[0].startswith(
        "| ddim | 10 | 20 | 6.5000 ± 31.7650 | +2.8750 ± 1.5882 | +79.3 ± 43.8 % | no |"
    )
    assert lines[2].startswith("| ddpm | 250 | 500 | 2.2500 | - | - | - |")
    assert lines[2].endswith("| 1 of 2 |")
    assert "98.0% read right" in text
    assert "none yet" in text
    assert "| ddim 10, guided at every step, seed 0 | 5.0000 | 4.0000 | -20.00% |" in text


def test_the_plot_draws_each_sampler_over_steps_and_over_rows() -> None:
    ours, cells = some_cells()
    svg = plot(outcomes(cells, ours))
    assert svg.count("<polyline") == 4
    assert svg.count("<circle") == 6
    assert ">steps<" in svg
    assert ">row evaluations per image<" in svg
    assert ">ddpm<" in svg


def test_results_are_written_of_the_cells_there_are(tmp_path: Path) -> None:
    ours, cells = some_cells()
    tasks = [Task(cell, f"{number}", 40) for number, cell in enumerate(plan(ours))]
    known = {task.key: cells[task.cell] for task in tasks if task.cell in cells}
    assert outlook(tasks, {}, workers=2) == "7 of 7 cells left, 0.0 million row evaluations"
    assert "1 of 7 cells left, 0.0 million" in outlook(tasks, known, workers=2)
    text = write_results(tmp_path / "results" / "cells.jsonl", cells, ours, truth())
    assert (tmp_path / "results/cells.md").read_text() == text
    assert (tmp_path / "results/cells.svg").read_text() == plot(outcomes(cells, ours))
