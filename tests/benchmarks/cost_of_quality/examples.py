"""Settings, tables and measured cells for the tests of the benchmark; nothing here has been measured."""

from typing import Any

import yaml

from benchmarks.cost_of_quality.cells import Measured
from benchmarks.cost_of_quality.plan import Cell
from benchmarks.cost_of_quality.settings import SETTINGS, Settings
from ray_dit.config import DiffusionConfig, SamplerConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.samplers import SamplerTable, make_table

SCHEDULE = linear_schedule(DiffusionConfig())


def settings(**fields: Any) -> Settings:
    return Settings.model_validate(yaml.safe_load(SETTINGS.read_text()) | fields)


def table(sampler: SamplerConfig) -> SamplerTable:
    return make_table(sampler, SCHEDULE, learn_sigma=False)


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
