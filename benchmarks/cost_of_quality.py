"""What a step buys: Fréchet distance against steps and row evaluations, for each sampler, with paired seeds.

    python -m benchmarks.cost_of_quality --model demo/model --images demo/images           # many hours of CPU
    python -m benchmarks.cost_of_quality --model demo/model --images demo/images --quick   # one minute
    --plan: what is still to do, and how long it takes;  --hours H: begin nothing after that time

What is measured stands in cost_of_quality.yaml. A cell is one sampler with one seed: a line in
benchmarks/results/cost_of_quality.jsonl, so that a run can be stopped at any time, goes on where it was, and
can be extended; the most telling cells come first. Sample i of a seed begins with the same noise under every
sampler, hence differences are taken seed by seed. A line counts only for the model, judge and settings it was
measured with.

Each run draws what there is so far: cost_of_quality.md and .svg beside the lines. One row evaluation is one
row of a call of the network: a guided step takes two per image, a step outside the interval one.
"""

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch._inductor.config as inductor
import yaml
from pydantic import Field
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from benchmarks.chart import Line, Panel, chart
from benchmarks.common import RESULTS, TRIALS, argument_parser, machine
from ray_dit.config import (
    ClassifierConfig,
    Config,
    Fraction,
    ImagesConfig,
    PositiveInt,
    Precision,
    SamplerConfig,
    Seed,
)
from ray_dit.core.classifier import Classifier, create, predict, train_classifier
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.metrics import FeatureStatistics, accuracy, class_counts, frechet_distance
from ray_dit.core.samplers import SamplerTable, make_table
from ray_dit.folders.images import ImagePlan, load_images, plan_images
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.formats.model_folder import WEIGHTS_KEY, ModelConfig
from ray_dit.pipeline import Pipeline, load
from ray_dit.vae import VAE, files_sha256

SETTINGS = Path(__file__).with_name("cost_of_quality.yaml")
CELLS = RESULTS / "cost_of_quality.jsonl"
QUICK_CELLS = TRIALS / "cost_of_quality_quick.jsonl"
QUICK: dict[str, Any] = {
    "classifier": {"steps": 60},
    "num_samples": 40,
    "seeds": [0, 1],
    "steps": [5, 10],
    "reference_steps": 20,
    "ancestral": {"name": "ddpm", "num_inference_steps": 25, "variance": "fixed_small"},
    "control": {"precision": "float32", "solver": "dpmpp", "steps": [10, 20], "seeds": [0]},
}
"""Instead of the committed settings: shows that everything works, and measures nothing."""
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""


# ---- what is measured


class Control(Config):
    """A few cells once more in another precision, guided at every step."""

    precision: Precision
    solver: str
    steps: tuple[PositiveInt, ...]
    seeds: tuple[Seed, ...]


class Settings(Config):
    """cost_of_quality.yaml."""

    size: PositiveInt
    heldout: Fraction
    classifier: ClassifierConfig
    classifier_seed: Seed
    num_samples: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt
    precision: Precision
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=len(T_975) + 1)]
    solvers: tuple[SamplerConfig, ...]
    steps: tuple[PositiveInt, ...]
    reference_steps: PositiveInt
    ancestral: SamplerConfig
    guidance_scale: float
    guidance_intervals: tuple[tuple[float, float] | None, ...]
    goal_steps: PositiveInt
    goal_loss: float
    control: Control

    def samplers(self) -> list[SamplerConfig]:
        """Every sampler per interval: the solvers by steps, the reference last, then the ancestral one."""
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
    precision: Precision

    def __str__(self) -> str:
        return f"{title(self.sampler)}, {self.precision}, seed {self.seed}"


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


# ---- one cell


@dataclass(frozen=True)
class Measured:
    """What is kept of a cell."""

    frechet_distance: float
    accuracy: float
    """Part of the samples that the judge reads as what was asked for."""
    images: int
    row_evaluations: int
    cpu_seconds: float
    """Of sampling and decoding, one thread."""
    machine: dict[str, Any]


@dataclass(frozen=True)
class Cells:
    """The cells measured so far: a file of JSON lines, each a cell in words, its key and its figures."""

    path: Path

    def read(self) -> dict[str, Measured]:
        """Figures by key; of two lines with one key the later counts."""
        names = [field.name for field in fields(Measured)]
        lines = [json.loads(line) for line in _lines_of(self.path)]
        return {line["key"]: Measured(**{name: line[name] for name in names}) for line in lines}

    def add(self, cell: Cell, key: str, measured: Measured) -> None:
        """One more line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps({"cell": str(cell), "key": key} | asdict(measured)) + "\n")


Paint = Callable[[list[int], range, Cell], np.ndarray]
"""(labels, sample ids, cell) → images uint8 [N, S, S, 3]."""
Judge = Callable[[np.ndarray], tuple[Tensor, Tensor]]
"""images → logits [N, K], features [N, D]."""


def measure(
    task: "Task",
    settings: Settings,
    num_classes: int,
    train: FeatureStatistics,
    paint: Paint,
    judge: Judge,
) -> Measured:
    """Paints and judges a cell's samples: label i mod K and noise of (seed, i), whatever the sampler."""
    begin = time.process_time()
    images: list[np.ndarray] = []
    for first in range(0, settings.num_samples, settings.batch_size):
        ids = range(first, min(first + settings.batch_size, settings.num_samples))
        images.append(paint([i % num_classes for i in ids], ids, task.cell))
    seconds = time.process_time() - begin
    logits, features = judge(np.concatenate(images))
    labels = torch.arange(settings.num_samples) % num_classes
    return Measured(
        frechet_distance=frechet_distance(train, FeatureStatistics.of(features)),
        accuracy=accuracy(class_counts(labels, logits.argmax(dim=1), num_classes)),
        images=settings.num_samples,
        row_evaluations=task.rows,
        cpu_seconds=seconds,
        machine=machine(),
    )


# ---- the judge and the real images


@dataclass(frozen=True)
class Truth:
    """The judge's weights, and what it makes of the real images."""

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


def real_truth(uri: str, settings: Settings) -> Truth:
    """Trains the judge and lets it look at the real images."""
    plan = plan_images(ImagesConfig(uri=uri, size=settings.size, heldout=settings.heldout))
    images, labels = real_images(plan, heldout=False)
    num_classes = len(plan.classes)
    print(f"training the judge on {len(images)} images ...", flush=True)
    judge = train_classifier(images, labels, num_classes, settings.classifier, settings.classifier_seed)
    train = FeatureStatistics.of(predict(judge.eval(), images)[1])
    images, labels = real_images(plan, heldout=True)
    logits, features = predict(judge, images)
    counts = class_counts(torch.from_numpy(labels), logits.argmax(dim=1), num_classes)
    weights = bytes_of(judge.state_dict())
    return Truth(weights, train, FeatureStatistics.of(features), accuracy(counts), num_classes)


def real_images(plan: ImagePlan, *, heldout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Real images of one side of the split, and their labels."""
    images, kept, _ = load_images(plan, plan.rows(heldout=heldout))
    return images, plan.labels[kept]


# ---- many cells, in processes of one thread each


@dataclass(frozen=True)
class Task:
    """A cell that is to be measured."""

    cell: Cell
    key: str
    rows: int
    """Row evaluations of the whole cell."""


class Worker:
    """The model, in the precisions asked for, and the judge in one process.

    The network is compiled where it can be.
    """

    def __init__(self, model: str, truth: Truth, settings: Settings) -> None:
        torch.set_num_threads(1)
        self._model, self._pipelines = model, dict[Precision, Pipeline]()
        self._judge = classifier_of(truth.judge, truth.num_classes, settings)
        self._settings, self._truth = settings, truth

    def do(self, task: Task) -> Measured:
        """Measures a cell."""
        pipeline = self._pipeline(task.cell.precision)

        def paint(labels: list[int], ids: range, cell: Cell) -> np.ndarray:
            latents = pipeline.sample_latents(labels, sample_ids=ids, seed=cell.seed, sampler=cell.sampler)
            return pipeline.decode(latents)

        for sampler in (task.cell.sampler, pipeline.sampler("ddim", steps=1, guidance_scale=1.0)):
            # what is compiled and set up once shall not count for the first cell
            paint(
                [0] * self._settings.batch_size, range(self._settings.batch_size), Cell(sampler, 0, "float32")
            )
        return measure(task, self._settings, self._truth.num_classes, self._truth.train, paint, self._look)

    def _pipeline(self, precision: Precision) -> Pipeline:
        if precision not in self._pipelines:
            pipeline = load(self._model, device="cpu", precision=precision)
            if shutil.which("g++"):
                pipeline.model.compile(dynamic=False)
            self._pipelines[precision] = pipeline
        return self._pipelines[precision]

    def _look(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        return predict(self._judge, images)


_worker: list[Worker] = []
"""A worker process's only worker."""


def _start(model: str, truth: Truth, settings: Settings) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    inductor.freezing = True
    inductor.cpp.use_decompose_tanh = True  # by exp: GELU takes a quarter of the time otherwise
    _worker.append(Worker(model, truth, settings))


def _follow_parent() -> None:
    """A worker whose parent was killed would wait for its next task forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(task: Task) -> Measured:
    return _worker[0].do(task)


def run(
    tasks: Iterable[Task],
    do: Callable[[Task], Measured],
    pool: Executor,
    *,
    workers: int,
    hours: float,
) -> Iterator[tuple[Task, Measured]]:
    """Does the tasks in order, so many at a time, and yields each when it is done.

    It begins none after ``hours``.
    """
    deadline = time.monotonic() + hours * 3600
    waiting, running = iter(tasks), dict[Future[Measured], Task]()
    while True:
        # No more is submitted than can run: what waits in the pool could not be held back at the end of the
        # time.
        while len(running) < workers and time.monotonic() < deadline:
            task = next(waiting, None)
            if task is None:
                break
            running[pool.submit(do, task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


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
    """To the same solver at the reference steps, over the seeds both have; None for the references
    themselves."""
    reference: float | None = None
    """Mean distance of the reference over those seeds."""
    num_pairs: int = 0
    """How many seeds those are."""

    def meets(self, loss: float) -> bool | None:
        """Whether the difference's interval includes 0 or stays below ``loss`` of the reference, if known."""
        if self.difference is None or self.difference.half is None or not self.reference:
            return None
        low, high = (self.difference.mean + sign * self.difference.half for sign in (-1, 1))
        return low <= 0 <= high or high < loss * self.reference


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> tuple[Estimate, float, int] | None:
    """Difference of distances by seed over the seeds both have; the reference's mean there; how many."""
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    return (
        Estimate.of([ours[seed] - reference[seed] for seed in seeds]),
        statistics.fmean(reference[seed] for seed in seeds),
        len(seeds),
    )


def outcomes(measured: Mapping[Cell, Measured], settings: Settings) -> list[Outcome]:
    """The samplers of which at least one seed has been measured, in the settings' order.

    The control is left out.
    """
    by_sampler: dict[SamplerConfig, dict[int, Measured]] = {}
    for cell, kept in measured.items():
        if cell.precision == settings.precision:
            by_sampler.setdefault(cell.sampler, {})[cell.seed] = kept
    distances = {
        sampler: {seed: kept.frechet_distance for seed, kept in seeds.items()}
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
    images = sum(one.images for one in kept)
    reference = settings.reference(sampler)
    compared = paired(distances[sampler], distances.get(reference, {})) if sampler != reference else None
    return Outcome(
        sampler=sampler,
        rows_per_image=sum(one.row_evaluations for one in kept) / images,
        num_seeds=len(kept),
        distance=Estimate.of(list(distances[sampler].values())),
        accuracy=statistics.fmean(one.accuracy for one in kept),
        seconds_per_image=sum(one.cpu_seconds for one in kept) / images,
        difference=compared[0] if compared else None,
        reference=compared[1] if compared else None,
        num_pairs=compared[2] if compared else 0,
    )


def choice(found: Sequence[Outcome], settings: Settings) -> Outcome | None:
    """What the default of generate should be.

    Of the samplers that meet the goal within its steps it is the one of least mean distance.

    Only samplers of which every seed has been measured, and of their reference, take part; equal ones are
    decided by row evaluations.
    """
    good = [
        one
        for one in found
        if one.num_pairs == len(settings.seeds)
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


def markdown(measured: Mapping[Cell, Measured], settings: Settings, truth: Truth) -> str:
    """A table a guidance interval, the control, and the choice."""
    found = outcomes(measured, settings)
    seeds = len(settings.seeds)
    lines = [
        "# Cost of quality",
        "",
        f"Fréchet distance (FD) of {settings.num_samples} samples to the real training images, guidance "
        f"scale {settings.guidance_scale:g}, {settings.precision}; ± is half of the 95 % interval over "
        f"seeds. The difference is to the same solver at {settings.reference_steps} steps, seed by seed. "
        f"Held-out real images ({truth.heldout.count}): FD "
        f"{frechet_distance(truth.train, truth.heldout):.4g}, {truth.heldout_accuracy:.1%} read right.",
    ]
    for interval in settings.guidance_intervals:
        where = "at every step" if interval is None else f"in time steps {interval[0]:g} to {interval[1]:g}"
        lines += ["", f"## Guided {where}", ""]
        lines += ["| sampler | steps | row evaluations | FD | difference | of the reference | within goal |"]
        lines[-1] += " read right | CPU ms per image | seeds |"
        lines += ["|---|--:|--:|--:|--:|--:|---|--:|--:|--:|"]
        lines += [_line(one, settings, seeds) for one in found if one.sampler.guidance_interval == interval]
    best = choice(found, settings)
    chosen = (
        f"{title(best.sampler)}" if best else "none yet: not all seeds are measured, or no sampler meets it"
    )
    goal = f"at most {settings.goal_steps} steps, difference including 0 or below {settings.goal_loss:.0%}"
    lines += ["", f"## {settings.control.precision} beside {settings.precision}", ""]
    pairs: list[str] = []
    for cell in control_cells(settings):
        one, other = measured.get(cell), measured.get(replace(cell, precision=settings.precision))
        if one and other:
            here, there = one.frechet_distance, other.frechet_distance
            name = f"{title(cell.sampler)}, seed {cell.seed}"
            pairs.append(f"| {name} | {here:.4f} | {there:.4f} | {there / here - 1:+.2%} |")
    head = [
        f"| cell | FD in {settings.control.precision} | FD in {settings.precision} | |",
        "|---|--:|--:|--:|",
    ]
    lines += [*head, *pairs] if pairs else ["Not measured yet."]
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
            Panel("row evaluations per image", "Fréchet distance", lines(lambda one: one.rows_per_image)),
        ]
    )


# ---- the command


def _lines_of(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def write_results(path: Path, measured: Mapping[Cell, Measured], settings: Settings, truth: Truth) -> str:
    """Writes table and plot beside the cells' file at ``path``; returns the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(measured, settings, truth)
    path.with_suffix(".md").write_text(text)
    if measured:
        path.with_suffix(".svg").write_text(plot(outcomes(measured, settings)))
    return text


def outlook(tasks: Sequence[Task], known: Mapping[str, Measured], workers: int) -> str:
    """What is left, in one line."""
    left = [task for task in tasks if task.key not in known]
    rows, done = sum(task.rows for task in left), sum(one.row_evaluations for one in known.values())
    text = f"{len(left)} of {len(tasks)} cells left, {rows / 1e6:.1f} million row evaluations"
    if not done:
        return text
    cost = sum(one.cpu_seconds for one in known.values()) / done
    hours = rows * cost / 3600
    return (
        f"{text}: {hours:.1f} CPU hours at {1000 * cost:.2f} ms per row, "
        f"{hours / workers:.1f} hours on {workers} cores"
    )


def main() -> None:
    """Measures what is still to do, or lists it, and draws what there is."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--images", required=True, help="the images it was trained on")
    parser.add_argument("--workers", type=int, default=2, help="processes, each of one thread")
    parser.add_argument("--hours", type=float, default=math.inf, help="begin no cell after so long")
    parser.add_argument("--quick", action="store_true", help="few samples, seeds and steps: measures nothing")
    parser.add_argument("--plan", action="store_true", help="tell what is left, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(**yaml.safe_load(SETTINGS.read_text()) | (QUICK if arguments.quick else {}))
    cells = Cells(QUICK_CELLS if arguments.quick else CELLS)
    truth = real_truth(arguments.images, settings)
    folder = read_model(arguments.model)
    tasks = tasks_of(settings, folder.config, model=model_sha256(folder), judge=truth.sha256)
    known = {key: one for key, one in cells.read().items() if key in {task.key for task in tasks}}
    print(outlook(tasks, known, arguments.workers), flush=True)
    if arguments.plan:
        return
    missing = [task for task in tasks if task.key not in known]
    context, start = multiprocessing.get_context("spawn"), (arguments.model, truth, settings)
    with ProcessPoolExecutor(arguments.workers, context, initializer=_start, initargs=start) as pool:
        for task, measured in run(missing, _do, pool, workers=arguments.workers, hours=arguments.hours):
            cells.add(task.cell, task.key, measured)
            known[task.key] = measured
            left = outlook(tasks, known, arguments.workers)
            print(f"{task.cell}: FD {measured.frechet_distance:.4f}; {left}", flush=True)
    by_cell = {task.cell: known[task.key] for task in tasks if task.key in known}
    print(write_results(cells.path, by_cell, settings, truth))


if __name__ == "__main__":
    main()
