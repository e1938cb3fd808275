"""What a step buys: Fréchet distance against steps and row evaluations, for each sampler, with paired seeds.

    python -m benchmarks.cost_of_quality --model demo/model --images demo/images           # many hours of CPU
    python -m benchmarks.cost_of_quality --model demo/model --images demo/images --quick   # a minute, for a look
    --plan: what is still to do, and how long it takes;  --hours H: begin nothing after that time

What is measured stands in cost_of_quality.yaml. A cell is one sampler with one seed. It is kept as a small file of its own
in --cache, so that a run can be stopped at any time, goes on where it was, and can be extended; the most telling cells come
first. Sample i of a seed begins with the same noise under every sampler, hence differences are taken seed by seed.

Each run writes what there is so far: benchmarks/results/cost_of_quality.{json,md,svg}; --quick writes beside its cache. One
row evaluation is one row of a call of the network: a guided step takes two an image, a step outside the interval one.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from benchmarks.chart import Line, Panel, chart
from ray_dit.config import (
    ClassifierConfig,
    Config,
    Fraction,
    ImagesConfig,
    PositiveInt,
    SamplerConfig,
    Seed,
)
from ray_dit.core.classifier import Classifier, create, predict, train_classifier
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.metrics import FeatureStatistics, accuracy, class_counts, frechet_distance
from ray_dit.core.samplers import SamplerTable, make_table
from ray_dit.pipeline import load
from ray_dit.stages.images import ImagePlan, load_images, plan_images
from ray_dit.storage.job import manifest_sha256, read_manifest
from ray_dit.storage.pretrained import ModelConfig, read_model

HERE = Path(__file__).parent
SETTINGS = HERE / "cost_of_quality.yaml"
RESULTS = HERE / "results"
QUICK: dict[str, Any] = {
    "classifier": {"steps": 60},
    "num_samples": 40,
    "seeds": [0, 1],
    "steps": [5, 10],
    "reference_steps": 20,
    "ancestral": {"name": "ddpm", "num_inference_steps": 25, "variance": "fixed_small"},
}
"""Instead of the committed settings: shows that everything works, and measures nothing."""
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""


# ---- what is measured


class Settings(Config):
    """cost_of_quality.yaml."""

    size: PositiveInt
    heldout: Fraction
    classifier: ClassifierConfig
    classifier_seed: Seed
    num_samples: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=len(T_975) + 1)]
    solvers: tuple[SamplerConfig, ...]
    steps: tuple[PositiveInt, ...]
    reference_steps: PositiveInt
    ancestral: SamplerConfig
    guidance_scale: float
    guidance_intervals: tuple[tuple[float, float] | None, ...]
    goal_steps: PositiveInt
    goal_loss: float

    def samplers(self) -> list[SamplerConfig]:
        """Every sampler, interval by interval: the solvers by steps, the reference last, then the ancestral one."""
        return [
            sampler
            for interval in self.guidance_intervals
            for solver in self.solvers
            for sampler in [
                *(self._with(solver, interval, steps) for steps in self.steps),
                self._with(solver, interval, self.reference_steps),
            ]
        ] + [self._with(self.ancestral, interval) for interval in self.guidance_intervals]

    def reference(self, sampler: SamplerConfig) -> SamplerConfig:
        """The same sampler at the steps all are compared with."""
        return self._with(sampler, sampler.guidance_interval, self.reference_steps)

    def _with(
        self, sampler: SamplerConfig, interval: tuple[float, float] | None, steps: int | None = None
    ) -> SamplerConfig:
        fields = sampler.model_dump() | {"guidance_scale": self.guidance_scale, "guidance_interval": interval}
        if steps is not None:
            fields["num_inference_steps"] = steps
        return SamplerConfig.model_validate(fields)


@dataclass(frozen=True)
class Cell:
    """One sampler with one seed."""

    sampler: SamplerConfig
    seed: int

    def __str__(self) -> str:
        return f"{title(self.sampler)}, seed {self.seed}"


def plan(settings: Settings) -> list[Cell]:
    """All cells, the most telling first: the goal's steps and the references, seed by seed; then the curve; DDPM last."""

    def place(cell: Cell) -> tuple[int, ...]:
        sampler = cell.sampler
        steps = sampler.num_inference_steps
        telling = steps in (settings.goal_steps, settings.reference_steps)
        tier = 2 if sampler.name == settings.ancestral.name else 0 if telling else 1
        interval = settings.guidance_intervals.index(sampler.guidance_interval)
        return tier, cell.seed, interval, steps

    return sorted(
        (Cell(sampler, seed) for sampler in settings.samplers() for seed in settings.seeds), key=place
    )


def rows_per_image(table: SamplerTable, guidance_scale: float) -> int:
    """Row evaluations an image takes."""
    return len(table) + (int(table.guided.sum()) if guidance_scale != 1 else 0)


def cell_key(cell: Cell, table: SamplerTable, *, model: str, judge: str, settings: Settings) -> str:
    """Hash of all that a cell's figures depend on; ``model`` and ``judge`` are hashes themselves.

    The sampler's table stands for its settings, so cells outlive a change of names and not one of coefficients.
    """
    matrix = np.round(table.matrix(), 6) + 0.0  # other last bits, and the sign of 0, are no other sampler
    parts = {
        "model": model,
        "judge": judge,
        "table": hashlib.sha256(matrix.astype("<f8").tobytes()).hexdigest(),
        "guidance_scale": cell.sampler.guidance_scale,
        "seed": cell.seed,
        "num_samples": settings.num_samples,
        "batch_size": settings.batch_size,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ---- one cell


@dataclass(frozen=True)
class Measured:
    """What is kept of a cell."""

    statistics: FeatureStatistics
    counts: Tensor
    """[2, K]: right ones and all, by class."""
    facts: dict[str, Any]
    """CPU seconds, row evaluations, machine; and, for people, what the cell was."""

    def write(self, path: Path) -> None:
        """The file appears whole or not at all."""
        tensors = {
            "count": torch.tensor(self.statistics.count),
            "mean": self.statistics.mean,
            "scatter": self.statistics.scatter,
            "counts": self.counts,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(bytes_of(tensors, metadata={"facts": json.dumps(self.facts, sort_keys=True)}))
        os.replace(scratch, path)

    @classmethod
    def read(cls, path: Path) -> "Measured":
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            count, mean, scatter, counts = map(file.get_tensor, ("count", "mean", "scatter", "counts"))
        return cls(FeatureStatistics(int(count), mean, scatter), counts, facts)


Paint = Callable[[list[int], range, Cell], np.ndarray]
"""(labels, sample ids, cell) → pictures uint8 [N, S, S, 3]."""
Judge = Callable[[np.ndarray], tuple[Tensor, Tensor]]
"""pictures → logits [N, K], features [N, D]."""


def measure(cell: Cell, settings: Settings, num_classes: int, paint: Paint, judge: Judge) -> Measured:
    """Paints and judges a cell's samples: label i mod K and noise of (seed, i), whatever the sampler."""
    begin = time.process_time()
    images: list[np.ndarray] = []
    for first in range(0, settings.num_samples, settings.batch_size):
        ids = range(first, min(first + settings.batch_size, settings.num_samples))
        images.append(paint([i % num_classes for i in ids], ids, cell))
    seconds = time.process_time() - begin
    logits, features = judge(np.concatenate(images))
    labels = torch.arange(settings.num_samples) % num_classes
    counts = class_counts(labels, logits.argmax(dim=1), num_classes)
    return Measured(
        FeatureStatistics.of(features), counts, {"seconds": seconds, "images": settings.num_samples}
    )


# ---- the judge and the real pictures


@dataclass(frozen=True)
class Truth:
    """The judge's weights, and what it makes of the real pictures."""

    judge: bytes
    train: FeatureStatistics
    heldout: FeatureStatistics
    heldout_accuracy: float
    num_classes: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.judge).hexdigest()


def classifier_of(weights: bytes, num_classes: int, settings: Settings) -> Classifier:
    """The judge from its weights, in evaluation mode."""
    model = create(num_classes, settings.size, settings.classifier.width, seed=0)
    model.load_state_dict(tensors_of(weights))
    return model.eval()


def real_truth(uri: str, settings: Settings, cache: Path) -> Truth:
    """Trains the judge (or reads it from the cache) and lets it look at the real pictures."""
    pictures = plan_images(ImagesConfig(uri=uri, size=settings.size, heldout=settings.heldout))
    parts = {
        "images": pictures.sha256,
        "size": settings.size,
        "heldout": settings.heldout,
        "classifier": settings.classifier.content(),
        "seed": settings.classifier_seed,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path = cache / f"judge-{key[:16]}.safetensors"
    images, labels = real_pictures(pictures, heldout=False)
    num_classes = len(pictures.classes)
    if not path.exists():
        print(f"training the judge on {len(images)} pictures ...", flush=True)
        trained = train_classifier(images, labels, num_classes, settings.classifier, settings.classifier_seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(bytes_of(trained.state_dict()))
        os.replace(scratch, path)
    weights = path.read_bytes()
    judge = classifier_of(weights, num_classes, settings)
    train = FeatureStatistics.of(predict(judge, images)[1])
    images, labels = real_pictures(pictures, heldout=True)
    logits, features = predict(judge, images)
    counts = class_counts(torch.from_numpy(labels), logits.argmax(dim=1), num_classes)
    return Truth(weights, train, FeatureStatistics.of(features), accuracy(counts), num_classes)


def real_pictures(pictures: ImagePlan, *, heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Real pictures of one side of the split, and their labels."""
    images, kept, _ = load_images(pictures, pictures.rows(heldout=heldout))
    return images, pictures.labels[kept]


# ---- many cells, in processes of one thread each


@dataclass(frozen=True)
class Task:
    """A cell, and where its file goes."""

    cell: Cell
    path: Path
    rows: int
    """Row evaluations of the whole cell."""


class Worker:
    """The model and the judge in one process."""

    def __init__(self, model: str, truth: Truth, settings: Settings) -> None:
        torch.set_num_threads(1)
        self._pipeline = load(model, device="cpu")
        self._pipeline.vae  # noqa: B018  loaded now, for the first cell's seconds not to hold it
        self._judge = classifier_of(truth.judge, truth.num_classes, settings)
        self._settings, self._num_classes = settings, truth.num_classes

    def do(self, task: Task) -> None:
        """Measures a cell and keeps it."""
        measured = measure(task.cell, self._settings, self._num_classes, self._paint, self._look)
        facts = {
            "sampler": task.cell.sampler.model_dump(mode="json"),
            "seed": task.cell.seed,
            "row_evaluations": task.rows,
            "machine": machine(),
        }
        Measured(measured.statistics, measured.counts, measured.facts | facts).write(task.path)

    def _paint(self, labels: list[int], ids: range, cell: Cell) -> np.ndarray:
        latents = self._pipeline.sample_latents(labels, sample_ids=ids, seed=cell.seed, sampler=cell.sampler)
        return self._pipeline.decode(latents)

    def _look(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        return predict(self._judge, images)


_worker: list[Worker] = []
"""A worker process's only worker."""


def _start(model: str, truth: Truth, settings: Settings) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    _worker.append(Worker(model, truth, settings))


def _follow_parent() -> None:
    """A worker whose parent was killed would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(task: Task) -> None:
    _worker[0].do(task)


def run(
    tasks: Iterable[Task], do: Callable[[Task], None], pool: Executor, *, workers: int, hours: float
) -> Iterator[Task]:
    """Does the tasks in order, so many at a time, and yields each when it is done; begins none after ``hours``."""
    deadline = time.monotonic() + hours * 3600
    waiting, running = iter(tasks), dict[Future[None], Task]()
    while True:
        # No more is submitted than can run: what waits in the pool could not be held back at the end of the time.
        while len(running) < workers and time.monotonic() < deadline:
            task = next(waiting, None)
            if task is None:
                break
            running[pool.submit(do, task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            yield running.pop(future)


def tasks_of(settings: Settings, config: ModelConfig, *, model: str, judge: str, cache: Path) -> list[Task]:
    """Every cell with its file, in the order of the plan; ``model`` and ``judge`` are hashes."""
    schedule = linear_schedule(config.diffusion)
    tables = {
        sampler: make_table(sampler, schedule, learn_sigma=config.model.learn_sigma)
        for sampler in settings.samplers()
    }
    tasks: list[Task] = []
    for cell in plan(settings):
        sampler, table = cell.sampler, tables[cell.sampler]
        key = cell_key(cell, table, model=model, judge=judge, settings=settings)
        guidance = "interval" if sampler.guidance_interval else "full"
        name = (
            f"{sampler.name}-{sampler.num_inference_steps}-{guidance}-seed{cell.seed}-{key[:16]}.safetensors"
        )
        rows = rows_per_image(table, sampler.guidance_scale) * settings.num_samples
        tasks.append(Task(cell, cache / name, rows))
    return tasks


# ---- the figures


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half width of its 95 % interval; one seed has none."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Student's t interval; ValueError for no values, or more than the table of quantiles reaches to."""
        if not 0 < len(values) <= len(T_975) + 1:
            raise ValueError(f"an interval takes 1 to {len(T_975) + 1} values, got {len(values)}")
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, None)
        return cls(mean, T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values)))

    def data(self) -> dict[str, float | None]:
        return {"mean": self.mean, "half_width_95": self.half}


@dataclass(frozen=True)
class Outcome:
    """All seeds of one sampler."""

    sampler: SamplerConfig
    rows_per_image: float
    num_seeds: int
    distance: Estimate
    accuracy: float
    seconds_per_image: float
    difference: Estimate | None = None
    """To the same solver at the reference steps, over the seeds both have; None for the references themselves."""
    reference: float | None = None
    """Mean distance of the reference over those seeds."""

    def meets(self, loss: float) -> bool | None:
        """Whether the interval of the difference includes 0 or stays below ``loss`` of the reference; None: unknown."""
        if self.difference is None or self.difference.half is None or not self.reference:
            return None
        low, high = (self.difference.mean + sign * self.difference.half for sign in (-1, 1))
        return low <= 0 <= high or high < loss * self.reference


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> tuple[Estimate, float] | None:
    """Difference of distances by seed, over the seeds both have, and the reference's mean over these."""
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    return (
        Estimate.of([ours[seed] - reference[seed] for seed in seeds]),
        statistics.fmean(reference[seed] for seed in seeds),
    )


def outcomes(
    measured: Mapping[Cell, Measured], settings: Settings, train: FeatureStatistics
) -> list[Outcome]:
    """The samplers of which at least one seed has been measured, in the settings' order."""
    by_sampler: dict[SamplerConfig, dict[int, Measured]] = {}
    for cell, kept in measured.items():
        by_sampler.setdefault(cell.sampler, {})[cell.seed] = kept
    distances = {
        sampler: {seed: frechet_distance(train, kept.statistics) for seed, kept in seeds.items()}
        for sampler, seeds in by_sampler.items()
    }
    return [
        _outcome(sampler, list(by_sampler[sampler].values()), distances, settings)
        for sampler in settings.samplers()
        if sampler in by_sampler
    ]


def _outcome(
    sampler: SamplerConfig,
    kept: list[Measured],
    distances: Mapping[SamplerConfig, Mapping[int, float]],
    settings: Settings,
) -> Outcome:
    images = sum(one.facts["images"] for one in kept)
    reference = settings.reference(sampler)
    compared = paired(distances[sampler], distances.get(reference, {})) if sampler != reference else None
    return Outcome(
        sampler=sampler,
        rows_per_image=sum(one.facts["row_evaluations"] for one in kept) / images,
        num_seeds=len(kept),
        distance=Estimate.of(list(distances[sampler].values())),
        accuracy=accuracy(torch.stack([one.counts for one in kept]).sum(dim=0)),
        seconds_per_image=sum(one.facts["seconds"] for one in kept) / images,
        difference=compared[0] if compared else None,
        reference=compared[1] if compared else None,
    )


def choice(found: Sequence[Outcome], settings: Settings) -> Outcome | None:
    """What the default of generate should be: of those that meet the goal within its steps, the least mean distance.

    Only samplers of which every seed has been measured take part; equal ones are decided by row evaluations.
    """
    good = [
        one
        for one in found
        if one.num_seeds == len(settings.seeds)
        and one.sampler.num_inference_steps <= settings.goal_steps
        and one.meets(settings.goal_loss)
    ]
    return min(good, key=lambda one: (one.distance.mean, one.rows_per_image), default=None)


# ---- how they are shown


def title(sampler: SamplerConfig) -> str:
    """A sampler in words."""
    interval = sampler.guidance_interval
    where = "at every step" if interval is None else f"in {interval[0]:g}-{interval[1]:g}"
    return f"{sampler.name} {sampler.num_inference_steps}, guided {where}"


def markdown(found: Sequence[Outcome], settings: Settings, truth: Truth) -> str:
    """A table a guidance interval, and the choice."""
    seeds = len(settings.seeds)
    lines = [
        "# Cost of quality",
        "",
        f"Fréchet distance (FD) of {settings.num_samples} samples to the real training pictures, guidance scale "
        f"{settings.guidance_scale:g}; ± is half of the 95 % interval over seeds. The difference is to the same solver at "
        f"{settings.reference_steps} steps, seed by seed. Held-out real pictures ({truth.heldout.count}): FD "
        f"{frechet_distance(truth.train, truth.heldout):.4g}, {truth.heldout_accuracy:.1%} read right.",
    ]
    for interval in settings.guidance_intervals:
        where = "at every step" if interval is None else f"in time steps {interval[0]:g} to {interval[1]:g}"
        lines += ["", f"## Guided {where}", ""]
        lines += ["| sampler | steps | row evaluations | FD | difference | of the reference | within goal |"]
        lines[-1] += " read right | CPU ms an image | seeds |"
        lines += ["|---|--:|--:|--:|--:|--:|---|--:|--:|--:|"]
        lines += [_line(one, settings, seeds) for one in found if one.sampler.guidance_interval == interval]
    best = choice(found, settings)
    chosen = (
        f"{title(best.sampler)}" if best else "none yet: not all seeds are measured, or no sampler meets it"
    )
    goal = f"at most {settings.goal_steps} steps, difference including 0 or below {settings.goal_loss:.0%}"
    return "\n".join([*lines, "", f"Goal: {goal}. The least distance that meets it: **{chosen}**.", ""])


def _line(one: Outcome, settings: Settings, seeds: int) -> str:
    meets = one.meets(settings.goal_loss)
    share = "-"
    if one.difference is not None and one.reference:
        share = _plus_minus(one.difference, 100 / one.reference, "+.1f") + " %"
    cells = [
        one.sampler.name,
        str(one.sampler.num_inference_steps),
        f"{one.rows_per_image:.0f}",
        _plus_minus(one.distance, 1, ".4f"),
        _plus_minus(one.difference, 1, "+.4f") if one.difference else "-",
        share,
        "-" if meets is None else "yes" if meets else "no",
        f"{one.accuracy:.2%}",
        f"{1000 * one.seconds_per_image:.1f}",
        f"{one.num_seeds} of {seeds}",
    ]
    return f"| {' | '.join(cells)} |"


def _plus_minus(estimate: Estimate, factor: float, form: str) -> str:
    text = format(estimate.mean * factor, form)
    return text if estimate.half is None else f"{text} ± {format(estimate.half * factor, form.lstrip('+'))}"


def plot(found: Sequence[Outcome]) -> str:
    """SVG: distance against steps, and against row evaluations; dashed with a guidance interval."""
    names = list(dict.fromkeys(one.sampler.name for one in found))
    groups: dict[tuple[int, bool], list[Outcome]] = {}
    for one in sorted(found, key=lambda one: one.sampler.num_inference_steps):
        where = names.index(one.sampler.name), one.sampler.guidance_interval is not None
        groups.setdefault(where, []).append(one)

    def lines(x_of: Callable[[Outcome], float]) -> list[Line]:
        return [
            Line(
                names[name] + (", guidance interval" if dashed else ""),
                name,
                dashed,
                [(x_of(one), one.distance.mean, one.distance.half or 0.0) for one in group],
            )
            for (name, dashed), group in sorted(groups.items())
        ]

    return chart(
        [
            Panel("steps", "Fréchet distance", lines(lambda one: one.sampler.num_inference_steps)),
            Panel("row evaluations an image", "Fréchet distance", lines(lambda one: one.rows_per_image)),
        ]
    )


# ---- the command


def machine() -> dict[str, Any]:
    """Where a cell was measured."""
    names = [
        line.partition(":")[2].strip() for line in _lines_of("/proc/cpuinfo") if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
    }


def _lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def write_results(folder: Path, tasks: Sequence[Task], settings: Settings, truth: Truth, model: str) -> str:
    """Writes JSON, table and plot of the cells there are; returns the table."""
    measured = {task.cell: Measured.read(task.path) for task in tasks if task.path.exists()}
    found = outcomes(measured, settings, truth.train)
    machines = {json.dumps(kept.facts["machine"], sort_keys=True) for kept in measured.values()}
    best = choice(found, settings)
    data = {
        "machines": [json.loads(one) for one in sorted(machines)],
        "settings": settings.model_dump(mode="json"),
        "model_sha256": model,
        "judge_sha256": truth.sha256,
        "cells": {"measured": len(measured), "planned": len(tasks)},
        "real_heldout": {
            "images": truth.heldout.count,
            "frechet_distance": frechet_distance(truth.train, truth.heldout),
            "class_accuracy": truth.heldout_accuracy,
        },
        "outcomes": [_data(one, measured, settings, truth) for one in found],
        "choice": best.sampler.model_dump(mode="json") if best else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(found, settings, truth)
    (folder / "cost_of_quality.json").write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    (folder / "cost_of_quality.md").write_text(text)
    if found:
        (folder / "cost_of_quality.svg").write_text(plot(found))
    return text


def _data(
    one: Outcome, measured: Mapping[Cell, Measured], settings: Settings, truth: Truth
) -> dict[str, Any]:
    kept = {cell.seed: each for cell, each in measured.items() if cell.sampler == one.sampler}
    return {
        "sampler": one.sampler.model_dump(mode="json"),
        "row_evaluations_per_image": one.rows_per_image,
        "frechet_distance": one.distance.data(),
        "by_seed": {str(s): frechet_distance(truth.train, kept[s].statistics) for s in sorted(kept)},
        "difference": one.difference.data() if one.difference else None,
        "reference_frechet_distance": one.reference,
        "meets_goal": one.meets(settings.goal_loss),
        "class_accuracy": one.accuracy,
        "cpu_seconds_per_image": one.seconds_per_image,
    }


def seconds_per_row(tasks: Sequence[Task]) -> float | None:
    """CPU seconds a row evaluation takes, decoding included, over the cells there are."""
    facts = [Measured.read(task.path).facts for task in tasks if task.path.exists()]
    rows = sum(one["row_evaluations"] for one in facts)
    return sum(one["seconds"] for one in facts) / rows if rows else None


def outlook(tasks: Sequence[Task], workers: int) -> str:
    """What is left, in one line."""
    left = [task for task in tasks if not task.path.exists()]
    rows, cost = sum(task.rows for task in left), seconds_per_row(tasks)
    text = f"{len(left)} of {len(tasks)} cells left, {rows / 1e6:.1f} million row evaluations"
    if cost is None:
        return text
    hours = rows * cost / 3600
    return f"{text}: {hours:.1f} CPU hours at {1000 * cost:.2f} ms a row, {hours / workers:.1f} hours on {workers} cores"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--images", required=True, help="the pictures it was trained on")
    parser.add_argument(
        "--cache", type=Path, default=Path("bench/cost_of_quality"), help="folder of the cells"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, each of one thread")
    parser.add_argument("--hours", type=float, default=math.inf, help="begin no cell after so long")
    parser.add_argument("--quick", action="store_true", help="few samples, seeds and steps: measures nothing")
    parser.add_argument("--plan", action="store_true", help="tell what is left, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cache = arguments.cache / "quick" if arguments.quick else arguments.cache
    settings = Settings(**yaml.safe_load(SETTINGS.read_text()) | (QUICK if arguments.quick else {}))
    truth = real_truth(arguments.images, settings, cache)
    model = manifest_sha256(read_manifest(arguments.model, "model"))
    config = read_model(arguments.model).config
    tasks = tasks_of(settings, config, model=model, judge=truth.sha256, cache=cache)
    print(outlook(tasks, arguments.workers), flush=True)
    if arguments.plan:
        return
    missing = [task for task in tasks if not task.path.exists()]
    context, start = multiprocessing.get_context("spawn"), (arguments.model, truth, settings)
    with ProcessPoolExecutor(arguments.workers, context, initializer=_start, initargs=start) as pool:
        for task in run(missing, _do, pool, workers=arguments.workers, hours=arguments.hours):
            distance = frechet_distance(truth.train, Measured.read(task.path).statistics)
            print(f"{task.cell}: FD {distance:.4f}; {outlook(tasks, arguments.workers)}", flush=True)
    print(write_results(cache if arguments.quick else RESULTS, tasks, settings, truth, model))


if __name__ == "__main__":
    main()
