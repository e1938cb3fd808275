"""The cells that are to be measured, in which order and under which key; measures nothing."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from benchmarks.cost_of_quality.settings import Settings
from ray_dit.config import Precision, SamplerConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.samplers import SamplerTable, make_table
from ray_dit.folders.model import ModelFolder
from ray_dit.formats.model_folder import WEIGHTS_KEY, ModelConfig
from ray_dit.vae import VAE, files_sha256


@dataclass(frozen=True)
class Cell:
    """One sampler with one seed."""

    sampler: SamplerConfig
    seed: int
    precision: Precision

    def __str__(self) -> str:
        return f"{title(self.sampler)}, {self.precision}, seed {self.seed}"


def title(sampler: SamplerConfig) -> str:
    """A sampler in words."""
    interval = sampler.guidance_interval
    where = "at every step" if interval is None else f"in {interval[0]:g}-{interval[1]:g}"
    return f"{sampler.name} {sampler.num_inference_steps}, guided {where}"


def plan(settings: Settings) -> list[Cell]:
    """All cells, the most telling first.

    They are goal and reference, solver by solver; DDPM; the curve; DDPM with an interval; the control.
    """

    def place(cell: Cell) -> tuple[int, ...]:
        sampler = cell.sampler
        steps = sampler.num_inference_steps
        telling = steps in (settings.goal_steps, settings.reference_steps)
        interval = settings.guidance_intervals.index(sampler.guidance_interval)
        tier = 0 if telling else 2
        if sampler.name == settings.ancestral.name:
            tier = 3 if interval else 1
        if cell.precision != settings.precision:
            tier = 4
        solvers = [solver.name for solver in settings.solvers]
        solver = solvers.index(sampler.name) if sampler.name in solvers else len(solvers)
        # the curve's cheap cells come before its dear ones
        return (tier, steps if tier == 2 else 0, interval, solver, cell.seed, steps)

    cells = [
        Cell(sampler, seed, settings.precision) for sampler in settings.samplers() for seed in settings.seeds
    ]
    return sorted(cells + control_cells(settings), key=place)


def control_cells(settings: Settings) -> list[Cell]:
    """The cells of ``settings.control``."""
    control = settings.control
    return [
        Cell(sampler, seed, control.precision)
        for sampler in settings.samplers()
        if (sampler.name, sampler.guidance_interval) == (control.solver, None)
        and sampler.num_inference_steps in control.steps
        for seed in control.seeds
    ]


def rows_per_image(table: SamplerTable, guidance_scale: float) -> int:
    """Row evaluations per image."""
    return len(table) + (int(table.guided.sum()) if guidance_scale != 1 else 0)


def cell_key(cell: Cell, table: SamplerTable, *, model: str, judge: str, settings: Settings) -> str:
    """Hash of all that a cell's figures depend on; ``model`` and ``judge`` are hashes themselves.

    The sampler's table stands for its settings, so cells outlive a change of names and not one of
    coefficients.
    """
    matrix = np.round(table.matrix(), 6) + 0.0  # other last bits, and the sign of 0, are no other sampler
    parts = {
        "model": model,
        "judge": judge,
        "table": hashlib.sha256(matrix.astype("<f8").tobytes()).hexdigest(),
        "guidance_scale": cell.sampler.guidance_scale,
        "seed": cell.seed,
        "precision": cell.precision,
        "num_samples": settings.num_samples,
        "batch_size": settings.batch_size,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """A cell that is to be measured."""

    cell: Cell
    key: str
    rows: int
    """Row evaluations of the whole cell."""


def tasks_of(settings: Settings, config: ModelConfig, *, model: str, judge: str) -> list[Task]:
    """Every cell with its key, in the order of the plan; ``model`` and ``judge`` are hashes."""
    schedule = linear_schedule(config.diffusion)
    tables = {
        sampler: make_table(sampler, schedule, learn_sigma=config.model.learn_sigma)
        for sampler in settings.samplers()
    }
    return [
        Task(
            cell,
            cell_key(cell, tables[cell.sampler], model=model, judge=judge, settings=settings),
            rows_per_image(tables[cell.sampler], cell.sampler.guidance_scale) * settings.num_samples,
        )
        for cell in plan(settings)
    ]


def model_sha256(folder: ModelFolder) -> str:
    """Hash of what makes latents and images: not of the default sampler, labels and card."""
    config = folder.config.model_dump(
        mode="json", include={"model", "diffusion", "latents", "guidance_channels"}
    )
    parts = {
        "config": config,
        "weights": hashlib.sha256(folder.store.get(WEIGHTS_KEY)).hexdigest(),
        "vae": files_sha256(VAE.load(folder.vae_uri).files()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
