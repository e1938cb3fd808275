"""The pure parts of the benchmark: what is measured, in which order, under which key, and its statistics."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.chart import Line, Panel, chart
from benchmarks.cost_of_quality import (
    QUICK,
    SETTINGS,
    T_975,
    Cell,
    Cells,
    Estimate,
    Measured,
    Outcome,
    Settings,
    Task,
    Truth,
    cell_key,
    choice,
    control_cells,
    markdown,
    measure,
    outcomes,
    outlook,
    paired,
    plan,
    plot,
    rows_per_image,
    run,
    write_results,
)
from ray_dit.config import DiffusionConfig, Precision, SamplerConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.metrics import FeatureStatistics, frechet_distance
from ray_dit.core.samplers import SamplerTable, make_table
from ray_dit.core.sampling import TableBank, init_rows, sample

SCHEDULE = linear_schedule(DiffusionConfig())


def settings(**fields: Any) -> Settings:
    return Settings.model_validate(yaml.safe_load(SETTINGS.read_text()) | fields)


def table(sampler: SamplerConfig) -> SamplerTable:
    return make_table(sampler, SCHEDULE, learn_sigma=False)


def key(cell: Cell, model: str = "m", judge: str = "j", **fields: Any) -> str:
    return cell_key(cell, table(cell.sampler), model=model, judge=judge, settings=settings(**fields))


def test_the_committed_settings_are_what_the_goal_asks_for() -> None:
    ours = settings()
    assert ours.num_samples >= 5000
    assert len(set(ours.seeds)) >= 5
    assert {sampler.name for sampler in ours.solvers} == {"ddim", "dpmpp", "unipc"}
    assert (min(ours.steps), max(ours.steps), ours.reference_steps) == (5, 50, 200)
    assert ours.goal_steps in ours.steps
    assert ours.goal_loss == 0.05
    assert None in ours.guidance_intervals
    assert len(ours.guidance_intervals) == 2
    assert (ours.ancestral.name, ours.ancestral.num_inference_steps) == ("ddpm", 250)
    assert len(control_cells(ours)) == 4


def test_quick_settings_are_settings() -> None:
    assert settings(**QUICK).num_samples < 100


def test_every_cell_is_planned_once_and_can_be_sampled() -> None:
    ours = settings()
    cells = plan(ours)
    assert len(cells) == len(set(cells)) == (3 * (len(ours.steps) + 1) + 1) * 2 * 5 + 4
    assert all(len(table(sampler)) == sampler.num_inference_steps for sampler in ours.samplers())


def test_the_most_telling_cells_come_first_and_the_slow_ones_last() -> None:
    cells = plan(settings())
    first = [(cell.sampler.name, cell.sampler.num_inference_steps, cell.seed) for cell in cells[:10]]
    assert first == [("dpmpp", steps, seed) for seed in range(5) for steps in (10, 200)]
    telling = 3 * 2 * 5 * 2
    assert {cell.sampler.num_inference_steps for cell in cells[:telling]} == {10, 200}
    assert {cell.precision for cell in cells[:telling]} == {"bfloat16"}
    assert {str(cell.sampler.name) for cell in cells[telling : telling + 5]} == {"ddpm"}
    steps = [cell.sampler.num_inference_steps for cell in cells[telling + 5 : -9]]
    assert steps == sorted(steps)
    assert set(steps) == {5, 7, 20, 50}
    assert {cell.sampler.name for cell in cells[-9:-4]} == {"ddpm"}
    assert {cell.precision for cell in cells[-4:]} == {"float32"}


@pytest.mark.parametrize("interval", [None, (150, 600)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_row_evaluations_are_the_rows_the_network_sees(
    scale: float, interval: tuple[float, float] | None
) -> None:
    seen = 0

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(x)
        return torch.zeros_like(x)

    sampler = SamplerConfig(num_inference_steps=10, guidance_scale=scale, guidance_interval=interval)
    rows = init_rows(
        (1, 2, 2),
        labels=torch.tensor([0, 1, 2]),
        sample_id=torch.arange(3),
        seed=0,
        guidance_scale=scale,
    )
    sample(GuidedModel(network, null_label=3), rows, TableBank([table(sampler)]))
    assert seen == 3 * rows_per_image(table(sampler), scale)


def test_the_key_is_of_everything_the_figures_depend_on() -> None:
    sampler = SamplerConfig(num_inference_steps=10, guidance_scale=2.0)

    def cell(seed: int = 0, precision: Precision = "bfloat16", **fields: Any) -> Cell:
        return Cell(SamplerConfig.model_validate(sampler.model_dump() | fields), seed, precision)

    keys = [
        key(cell()),
        key(cell(seed=1)),
        key(cell(precision="float32")),
        key(cell(name="ddim")),
        key(cell(num_inference_steps=11)),
        key(cell(guidance_scale=3.0)),
        key(cell(guidance_interval=(150, 600))),
        key(cell(), model="other"),
        key(cell(), judge="other"),
        key(cell(), num_samples=4000),
        key(cell(), batch_size=25),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key(cell())


def test_the_key_outlives_more_seeds_and_last_bits_but_no_other_coefficient() -> None:
    cell = Cell(SamplerConfig(num_inference_steps=10, guidance_scale=2.0), 0, "float32")
    assert key(cell) == key(cell, seeds=[0, 1, 2, 3, 4, 5], steps=[10])
    exact = table(cell.sampler)
    nearly, other = table(cell.sampler), table(cell.sampler)
    nearly.a[3] *= 1 + 1e-15
    other.a[3] *= 1.001
    ours, same, changed = (
        cell_key(cell, one, model="m", judge="j", settings=settings()) for one in (exact, nearly, other)
    )
    assert ours == same != changed


def painted(seed: int, labels: Sequence[int], ids: Sequence[int]) -> np.ndarray:
    """Pictures that tell their seed, label and id."""
    return np.array([[[[seed, label, i]]] for label, i in zip(labels, ids, strict=True)], dtype=np.uint8)


def test_a_cell_is_balanced_and_numbers_its_samples_whatever_the_batches() -> None:
    seen: list[np.ndarray] = []

    def paint(labels: list[int], ids: range, cell: Cell) -> np.ndarray:
        assert len(ids) <= 4
        return painted(cell.seed, labels, ids)

    def judge(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(images[:, 0, 0])
        # Reads label 1 as 2, all others right.
        answers = torch.from_numpy(images[:, 0, 0, 1].astype(np.int64))
        answers[answers == 1] = 2
        return torch.nn.functional.one_hot(answers, 3).float(), torch.from_numpy(images[:, 0, 0, 1:]).float()

    task = Task(Cell(SamplerConfig(), 7, "float32"), "key", 90)
    train = FeatureStatistics.of(torch.tensor([[1.0, 4.0], [2.0, 3.0], [1.0, 2.0]]))
    ours = settings(num_samples=9, batch_size=4)
    measured = measure(task, ours, 3, train, paint, judge)
    (pictures,) = seen
    assert pictures.tolist() == [[7, i % 3, i] for i in range(9)]
    features = torch.from_numpy(pictures[:, 1:]).float()
    assert measured.frechet_distance == frechet_distance(train, FeatureStatistics.of(features))
    assert measured.accuracy == pytest.approx(6 / 9)
    assert (measured.images, measured.row_evaluations) == (9, 90)
    assert measured.cpu_seconds >= 0


def kept(
    distance: float, *, rows: int = 20, images: int = 2, right: int = 2, seconds: float = 1.0
) -> Measured:
    """A cell's figures."""
    return Measured(
        frechet_distance=distance,
        accuracy=right / images,
        images=images,
        row_evaluations=rows * images,
        cpu_seconds=seconds,
        machine={"cpu": "c"},
    )


def test_cells_come_back_from_their_file_the_last_of_equal_keys(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "new" / "cells.jsonl")
    assert cells.read() == {}
    cell = Cell(SamplerConfig(), 7, "float32")
    for key_of, distance in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        cells.add(cell, key_of, kept(distance))
    assert cells.read() == {"a": kept(3.0), "b": kept(2.0)}


def test_the_interval_is_students() -> None:
    # Mean 4, standard deviation 2, standard error 2/√5; t(4) at 97.5 % is 2.776.
    estimate = Estimate.of([2.0, 3.0, 3.0, 5.0, 7.0])
    assert estimate.mean == pytest.approx(4.0)
    assert estimate.half == pytest.approx(2.776 * 2.0 / 5**0.5)
    assert Estimate.of([1.0, 3.0]).half == pytest.approx(12.706)
    assert Estimate.of([5.0]) == Estimate(5.0, None)


@pytest.mark.parametrize("count", [0, len(T_975) + 2])
def test_an_interval_the_table_does_not_reach_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"got {count}"):
        Estimate.of([1.0] * count)


def test_the_quantiles_are_those_of_students_t() -> None:
    """By the density's integral from 0 to the quantile, which is 0.475."""
    for degrees, quantile in enumerate(T_975, start=1):
        x = np.linspace(0, quantile, 20001)
        log_scale = torch.lgamma(torch.tensor([(degrees + 1) / 2, degrees / 2], dtype=torch.float64)).numpy()
        density = np.exp(log_scale[0] - log_scale[1]) / np.sqrt(degrees * np.pi)
        density = density * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
        assert np.trapezoid(density, x) == pytest.approx(0.475, abs=1e-4)


def test_differences_are_taken_by_seed_over_the_seeds_both_have() -> None:
    # The distances of a seed differ much from another seed's, their difference hardly: pairing sees that.
    compared = paired({0: 10.5, 1: 20.7, 5: 99.0}, {1: 20.0, 0: 10.0, 3: -1.0})
    assert compared is not None
    difference, reference, count = compared
    assert count == 2
    assert difference.mean == pytest.approx(0.6)
    assert difference.half == pytest.approx(12.706 * 0.1)
    assert reference == pytest.approx(15.0)
    assert paired({0: 1.0}, {1: 1.0}) is None


def outcome(mean: float, half: float | None, **fields: Any) -> Outcome:
    """One of 10 steps, all seeds measured, whose reference lies at 10."""
    given = {
        "sampler": SamplerConfig(num_inference_steps=10),
        "rows_per_image": 20.0,
        "num_seeds": 5,
        "distance": Estimate(10.0 + mean, half),
        "accuracy": 1.0,
        "seconds_per_image": 0.1,
        "difference": Estimate(mean, half),
        "reference": 10.0,
        "num_pairs": 5,
    }
    return Outcome(**given | fields)


@pytest.mark.parametrize(
    ("mean", "half", "meets"),
    [
        (0.3, 0.1, True),  # worse, by less than 5 %
        (0.45, 0.1, False),  # may be worse by more than 5 %
        (0.45, 0.5, True),  # includes 0
        (-2.0, 0.1, True),  # better
        (0.1, None, None),  # one seed
    ],
)
def test_the_goal(mean: float, half: float | None, meets: bool | None) -> None:
    assert outcome(mean, half).meets(0.05) is meets


def test_the_choice_is_the_least_distance_that_meets_the_goal() -> None:
    ours = settings()
    best = outcome(0.2, 0.1, rows_per_image=14.0)
    others = [
        outcome(0.3, 0.1),
        outcome(0.2, 0.1),  # as good for more rows
        outcome(0.9, 0.1, distance=Estimate(1.0, 0.1)),  # less, but far from its reference
        outcome(-1.0, 0.1, num_pairs=4),
        outcome(-1.0, 0.1, sampler=SamplerConfig(num_inference_steps=15)),
    ]
    assert choice([*others, best], ours) is best
    assert choice(others[2:], ours) is None


def some_cells() -> tuple[Settings, dict[Cell, Measured]]:
    """Two seeds of ddim at 10 and 200 steps, one of DDPM, and one in the other precision."""
    ours = settings(
        seeds=[0, 1],
        solvers=[{"name": "ddim"}],
        steps=[10],
        guidance_intervals=[None],
        control={"precision": "float32", "solver": "ddim", "steps": [10], "seeds": [0]},
    )
    ten, reference, ancestral = ours.samplers()
    return ours, {
        Cell(ten, 0, "bfloat16"): kept(4.0, right=1),
        Cell(ten, 1, "bfloat16"): kept(9.0, seconds=3.0),
        Cell(reference, 0, "bfloat16"): kept(1.0, rows=400),
        Cell(reference, 1, "bfloat16"): kept(6.25, rows=400),
        Cell(ancestral, 1, "bfloat16"): kept(2.25, rows=500),
        Cell(ten, 0, "float32"): kept(5.0),
    }


def test_outcomes_gather_the_seeds_of_a_sampler() -> None:
    ours, cells = some_cells()
    ten, reference, ancestral = outcomes(cells, ours)
    assert ten.distance.mean == pytest.approx((4 + 9) / 2)
    assert ten.difference is not None
    assert ten.difference.mean == pytest.approx((3 + 2.75) / 2)
    assert ten.difference.half == pytest.approx(12.706 * 0.125)
    assert ten.reference == pytest.approx((1 + 6.25) / 2)
    assert (ten.accuracy, ten.rows_per_image, ten.seconds_per_image) == (0.75, 20.0, 1.0)
    assert (reference.difference, ancestral.difference) == (None, None)
    assert (reference.num_seeds, ancestral.num_seeds, ancestral.distance.half) == (2, 1, None)


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


def test_a_chart_is_logarithmic_and_escaped() -> None:
    line = Line("<a>", 0, True, [(1.0, 1.0, 0.0), (10.0, 10.0, 9.99), (100.0, 100.0, 0.0)])
    svg = chart([Panel("x", "y", [line])])
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, pair.split(","))) for pair in svg.split('points="')[1].split('"')[0].split()
    )
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.2)
    assert x0 < x2
    assert y2 < y0
    assert "&lt;a&gt;" in svg
    assert "<a>" not in svg
    with pytest.raises(ValueError, match="positive"):
        chart([Panel("x", "y", [Line("a", 0, False, [(1.0, 0.0, 0.0)])])])


@pytest.mark.parametrize(("low", "high"), [(5.0, 500.0), (12.0, 16.0), (1.0, 1.2)])
def test_an_axis_has_a_few_round_numbers(low: float, high: float) -> None:
    svg = chart([Panel("x", "y", [Line("a", 0, False, [(1.0, low, 0.0), (10.0, high, 0.0)])])])
    numbers = [float(text.split("<")[0]) for text in svg.split('text-anchor="end">')[1:] if text[0].isdigit()]
    assert 3 <= len(numbers) <= 12
    assert all(low / 1.1 <= number <= high * 1.1 for number in numbers)


def test_results_are_written_of_the_cells_there_are(tmp_path: Path) -> None:
    ours, cells = some_cells()
    tasks = [Task(cell, f"{number}", 40) for number, cell in enumerate(plan(ours))]
    known = {task.key: cells[task.cell] for task in tasks if task.cell in cells}
    assert outlook(tasks, {}, workers=2) == "7 of 7 cells left, 0.0 million row evaluations"
    assert "1 of 7 cells left, 0.0 million" in outlook(tasks, known, workers=2)
    text = write_results(tmp_path / "results" / "cells.jsonl", cells, ours, truth())
    assert (tmp_path / "results/cells.md").read_text() == text
    assert (tmp_path / "results/cells.svg").read_text() == plot(outcomes(cells, ours))


@pytest.mark.parametrize("workers", [1, 2])
def test_all_cells_are_done_in_order_and_so_many_at_a_time(workers: int) -> None:
    tasks = [Task(cell, f"{number}", 1) for number, cell in enumerate(some_cells()[1])]
    begun: list[Task] = []
    at_once: list[int] = []
    finished: list[Task] = []
    last_alone = threading.Event()

    def do(task: Task) -> Measured:
        begun.append(task)
        at_once.append(len(begun) - len(finished))
        if task is tasks[-1]:
            assert last_alone.wait(30)
        return kept(float(task.key))

    with ThreadPoolExecutor(8) as pool:
        for task, measured in run(tasks, do, pool, workers=workers, hours=1.0):
            assert measured == kept(float(task.key))
            finished.append(task)
            if len(finished) == len(tasks) - 1:
                last_alone.set()
    assert {task.key for task in finished} == {task.key for task in tasks}
    assert len(finished) == len(tasks)
    assert max(at_once) <= workers
    if workers == 1:
        assert begun == finished == tasks


def test_no_cell_is_begun_after_the_time() -> None:
    tasks = [Task(cell, "key", 1) for cell in some_cells()[1]]
    with ThreadPoolExecutor(1) as pool:
        assert list(run(tasks, lambda task: kept(0.0), pool, workers=2, hours=0.0)) == []


def test_what_fails_in_a_worker_is_told() -> None:
    def do(task: Task) -> Measured:
        raise RuntimeError("no room")

    tasks = [Task(cell, "key", 1) for cell in some_cells()[1]]
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="no room"):
        list(run(tasks, do, pool, workers=2, hours=1.0))
