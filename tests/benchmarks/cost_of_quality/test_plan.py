"""What is measured, in which order and under which key."""

from typing import Any

import pytest
import torch

from benchmarks.cost_of_quality.plan import Cell, cell_key, plan, rows_per_image
from ray_dit.config import Precision, SamplerConfig
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.sampling import TableBank, init_rows, sample
from tests.benchmarks.cost_of_quality.examples import settings, table


def key(cell: Cell, model: str = "m", judge: str = "j", **fields: Any) -> str:
    return cell_key(cell, table(cell.sampler), model=model, judge=judge, settings=settings(**fields))


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
