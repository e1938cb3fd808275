"""All that a report shows, read from the folders of the stages; knows nothing of HTML.

Only a few images of a few classes are read, whatever the size of the data.
"""

import io
import itertools
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ray_dit import config as settings
from ray_dit.config import ReportConfig
from ray_dit.core.media import decode, psnr
from ray_dit.core.order import evenly
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.checkpoints import RECONSTRUCTIONS
from ray_dit.folders.dataset import read_shard
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.loss_curve import read_loss_curve
from ray_dit.folders.model import read_model
from ray_dit.folders.reading import load_images
from ray_dit.folders.stored_plans import read_plans
from ray_dit.formats.model_folder import ModelConfig
from ray_dit.formats.worker_history import History, keyed
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import manifest_objects, read_manifest, tied_manifest
from ray_dit.ledger.results import Facts, Manifest
from ray_dit.report.commands import command
from ray_dit.results import (
    DatasetResult,
    EvaluationResult,
    LatentsResult,
    ModelResult,
    Trained,
    TrainingResult,
    VAEResult,
)
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

MAX_CLASSES = 20
PER_CLASS = 10
DENOISED_CLASSES = 4
PREVIEWS = 9
MAX_SHARDS_READ = 20

T = TypeVar("T")
Images = NDArray[np.uint8]
"""uint8 [N, H, W, 3]"""


@dataclass(frozen=True)
class StageTime:
    """What one kind of work took, over all its finished runs."""

    stage: str
    what: str
    seconds: float
    count: int
    unit: str
    unfinished: int
    """Runs without an end: killed ones, whose time is not known."""
    machines: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """The manifests of the stages that made the dataset, in the order they ran."""

    vae: Manifest[VAEResult] | None
    """None for a VAE that was not trained here."""
    latents: Manifest[LatentsResult]
    training: Manifest[TrainingResult]
    dataset: Manifest[DatasetResult]
    evaluation: Manifest[EvaluationResult]


@dataclass(frozen=True)
class Contents:
    """Everything on the page."""

    classes: tuple[str, ...]
    """Names of the classes shown; all, or some evenly spaced."""
    num_classes: int
    generated: dict[str, Images]
    real: dict[str, Images]
    originals: Images | None
    reconstructed: Images | None
    psnr: NDArray[np.float64] | None
    """dB of each reconstruction shown."""
    denoising: dict[str, Images]
    """Previews of a few classes, from the first step to the finished image."""
    preview_steps: tuple[int, ...]
    loss: list[tuple[float, float]]
    vae_loss: list[tuple[float, float]]
    times: list[StageTime]
    commands: list[str]
    started_as: list[str]
    model: ModelConfig
    results: Results


def gather(config: ReportConfig) -> Contents:
    """Reads it all; UserError or NotFound where a stage's result is missing or unfinished."""
    results = _results(config)
    _check_chain(config, results)
    names = results.latents.facts.classes
    shown = spaced(names, MAX_CLASSES)
    vae = _reconstructions(config, results.vae)
    model = read_model(config.model).config
    steps, denoising = _denoising(config.model, spaced(range(len(names)), DENOISED_CLASSES), names)
    return Contents(
        classes=shown,
        num_classes=len(names),
        generated=_generated(open_store(config.dataset), results.dataset, names, shown),
        real=_real(config, shown),
        originals=vae[0] if vae else None,
        reconstructed=vae[1] if vae else None,
        psnr=psnr(*vae) if vae else None,
        denoising=denoising,
        preview_steps=steps,
        loss=_losses(config.run, results.training),
        vae_loss=_vae_loss(config, results.vae),
        times=[
            time
            for stage, uri in stage_folders(config).items()
            for time in stage_times(stage, open_store(uri))
        ],
        commands=commands(config, results, model),
        started_as=_started_as(config),
        model=model,
        results=results,
    )


def _results(config: ReportConfig) -> Results:
    """The manifests; of what was extended since, those that the stages after it have worked on."""
    training = training_of_model(config)
    evaluation = read_manifest(config.evaluation, EvaluationResult)
    return Results(
        vae=read_manifest(config.vae, VAEResult) if config.vae is not None else None,
        latents=tied_manifest(config.latents, LatentsResult, _input(training, "latents")),
        training=training,
        dataset=tied_manifest(config.dataset, DatasetResult, _input(evaluation, "dataset")),
        evaluation=evaluation,
    )


def training_of_model(config: ReportConfig) -> Manifest[TrainingResult]:
    """The run's generation that made the model, where the model tells; the newest otherwise."""
    newest, store = read_manifest(config.run, TrainingResult), open_store(config.run)
    model = read_manifest(config.model, ModelResult)
    for generation in range(newest.generation):
        earlier = Job(store, newest.stage, "", generation).manifest(TrainingResult)
        if earlier is not None and earlier.fingerprint == model.parts.get("train"):
            return earlier
    return newest


def _input(made: Manifest[Any], name: str) -> str | None:
    """Hash of what a stage has worked on; None where it did not write it down."""
    return made.parts.get("inputs", {}).get(name)


def _check_chain(config: ReportConfig, results: Results) -> None:
    """UserError where a stage worked on another result than the one shown beside it."""
    chain: tuple[tuple[Manifest[Any], str, str, Manifest[Any], str], ...] = (
        (results.training, config.run, "latents", results.latents, config.latents),
        (results.evaluation, config.evaluation, "dataset", results.dataset, config.dataset),
    )
    for made, folder, name, source, source_folder in chain:
        told = _input(made, name)
        if told is not None and told != source.sha256:
            raise UserError(
                f"{folder} was not made from {source_folder}, but from another {name}: give those that "
                "belong together"
            )


def stage_folders(config: ReportConfig) -> dict[str, str]:
    """The folders of the stages, in the order they ran."""
    folders = {
        "train-vae": config.vae,
        "encode": config.latents,
        "train": config.run,
        "generate": config.dataset,
        "evaluate": config.evaluation,
    }
    return {stage: uri for stage, uri in folders.items() if uri is not None}


def spaced(items: Sequence[T], most: int) -> tuple[T, ...]:
    """All items, or ``most`` of them at even distances, the first and the last among them."""
    return tuple(items[place] for place in evenly(len(items), most).tolist())


def _json(store: Store, key: str) -> Any:
    return json.loads(store.get(key))


def _generated(
    store: Store, manifest: Manifest[DatasetResult], names: tuple[str, ...], shown: Sequence[str]
) -> dict[str, Images]:
    """The first images of each class shown."""
    found: dict[str, list[Images]] = {name: [] for name in shown}
    for marker in itertools.islice(manifest_objects(store, manifest, Facts), MAX_SHARDS_READ):
        if all(len(images) >= PER_CLASS for images in found.values()):
            break
        shard = read_shard(store, marker.key, marker.sha256)
        for data, label in zip(shard.images, shard.labels, strict=True):
            images = found.get(names[label])
            if images is not None and len(images) < PER_CLASS:
                images.append(decode(data))
    return {name: np.stack(images) for name, images in found.items() if images}


def _real(config: ReportConfig, shown: Sequence[str]) -> dict[str, Images]:
    """The first held-out images of each class shown, training ones where none are held out."""
    plans = read_plans(open_store(config.latents), config.images)
    rows: dict[str, list[ImagePlan]] = {name: [] for name in shown}
    for plan in plans:
        for part in plan.parts():
            for name, found in _rows_of(part, shown).items():
                rows[name].append(part.take(found))
    real: dict[str, Images] = {}
    for name in shown:
        every = [(plan, row) for plan in rows[name] for row in range(plan.count)]
        held = [(plan, row) for plan, row in every if plan.heldout[row]]
        images = list(itertools.islice(_readable(held or every), PER_CLASS))
        if images:
            real[name] = np.stack(images)
    return real


def _rows_of(plan: ImagePlan, shown: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The images of each of these classes, some of which a later extension may have brought."""
    labels = {name: plan.classes.index(name) for name in shown if name in plan.classes}
    found = {name: np.flatnonzero(plan.labels == label) for name, label in labels.items()}
    return {name: rows for name, rows in found.items() if len(rows)}


def _readable(rows: Iterable[tuple[ImagePlan, int]]) -> Iterator[Images]:
    for plan, row in rows:
        try:
            yield from load_images(plan, [row])[0]  # encode has listed those that cannot be read
        except (NotFound, Conflict):  # removed or changed since, with others in one object
            continue


def _reconstructions(config: ReportConfig, vae: Manifest[VAEResult] | None) -> tuple[Images, Images] | None:
    arrays = _npz(config.vae, RECONSTRUCTIONS, vae)
    return (arrays["original"], arrays["reconstructed"]) if arrays else None


def _losses(uri: str, training: Manifest[Any]) -> list[tuple[float, float]]:
    """Steps and losses of a training."""
    curve = read_loss_curve(open_store(uri), training.generation, training.facts.history)
    return [(point["step"], point["loss"]) for point in curve]


def _vae_loss(config: ReportConfig, vae: Manifest[VAEResult] | None) -> list[tuple[float, float]]:
    if config.vae is None or vae is None:
        return []
    try:
        return _losses(config.vae, vae)
    except NotFound:
        return []


def _npz(uri: str | None, key: str, vae: Manifest[VAEResult] | None) -> dict[str, NDArray[Any]] | None:
    if uri is None or vae is None:
        return None
    try:
        data = open_store(uri).get(keyed(key, vae.facts.history))
    except NotFound:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _denoising(
    model: str, labels: Sequence[int], names: Sequence[str]
) -> tuple[tuple[int, ...], dict[str, Images]]:
    """Predictions of x_start after some of the steps, and the image at the end, for one sample per label."""
    from ray_dit.pipeline import load

    pipeline = load(model)
    if not pipeline.config.model.num_classes:
        labels = labels[:1]
    sampler = pipeline.config.sampler
    after: list[torch.Tensor] = []
    latents = pipeline.sample_latents(
        [*labels],
        sample_ids=range(len(labels)),
        seed=0,
        sampler=sampler,
        callback=lambda number, rows, x_start: after.append(x_start.clone()),
    )
    steps = spaced(range(1, len(after) + 1), PREVIEWS)
    stages = [pipeline.decode(after[step - 1]) for step in steps[:-1]] + [pipeline.decode(latents)]
    strips = np.stack(stages, axis=1)
    return steps, {names[label]: strips[row] for row, label in enumerate(labels)}


def stage_times(stage: str, store: Store) -> list[StageTime]:
    """Time and throughput from a folder's records of runs, summed by the kind of work."""
    records: dict[str, list[tuple[Any, Any]]] = {}
    for key in _run_keys(store):
        start = _json(store, key)
        try:
            end = _json(store, key.replace("start.json", "end.json"))
        except NotFound:
            end = None
        records.setdefault(start.get("what", stage), []).append((start, end))
    return [_stage_time(stage, what, runs) for what, runs in records.items()]


def _run_keys(store: Store) -> list[str]:
    """Starts of runs in their order, which their names give."""
    return sorted(
        info.key
        for info in store.list("_runs/")
        if info.key.count("/") == 2 and info.key.endswith("/start.json")
    )


UNITS = ("samples", "pictures", "images", "classifiers", "steps")
"""What a run may count, the most telling first."""


def _stage_time(stage: str, what: str, runs: Sequence[tuple[Any, Any]]) -> StageTime:
    ends = [end for _, end in runs if end is not None]
    unit = next((unit for unit in UNITS if any(unit in end for end in ends)), "")
    return StageTime(
        stage=stage,
        what=what,
        seconds=sum(end["seconds"] for end in ends),
        count=sum(end.get(unit, 0) for end in ends),
        unit=unit,
        unfinished=len(runs) - len(ends),
        machines=tuple(dict.fromkeys(f"{start['cpus']} CPUs, {start['machine']}" for start, _ in runs)),
    )


def commands(config: ReportConfig, results: Results, model: ModelConfig) -> list[str]:
    """One command per stage that gives the same result, from the settings stored with it.

    (Of a training that others went on with, the workers are those of the end.)
    """
    manifests: tuple[Manifest[Any] | None, ...] = (
        results.vae, results.latents, results.training, results.dataset, results.evaluation,
    )  # fmt: skip
    content = {made.stage: dict(made.parts["config"]) for made in manifests if made is not None}
    images = {"images.uri": config.images}
    kinds: dict[str, tuple[type[settings.Config], dict[str, str]]] = {
        "train-vae": (settings.TrainVaeConfig, {**images, "output": str(config.vae)}),
        "encode": (settings.EncodeConfig, {**images, "vae": config.vae or "VAE", "output": config.latents}),
        "train": (
            settings.TrainConfig,
            {"latents": config.latents, "output": config.run, "model_output": config.model},
        ),
        "generate": (settings.GenerateConfig, {"model": config.model, "output": config.dataset}),
        "evaluate": (
            settings.EvaluateConfig,
            {**images, "dataset": config.dataset, "output": config.evaluation},
        ),
    }
    for made in manifests:
        if made is not None and isinstance(made.facts, Trained):
            kinds[made.stage][1].update(_workers(made.facts.history, content[made.stage]))
    content["generate"] = _as_asked(content["generate"], results.latents.facts, model)
    if "requests" in results.dataset.parts.get("inputs", {}):  # which say how many of what
        content["generate"] |= {"num_images": None, "classes": None}
        kinds["generate"][1]["requests"] = "REQUESTS"
    return [command(stage, kinds[stage][0], content[stage], kinds[stage][1]) for stage in content]


def _workers(history: History, content: dict[str, Any]) -> dict[str, str]:
    """The workers of a training as placement, taken out of the settings of an earlier version."""
    before, _ = content.pop("num_workers", 1), content.pop("use_gpu", False)
    workers = history[-1].workers if history else before
    return {} if workers == 1 else {"num_workers": str(workers)}


def _as_asked(resolved: dict[str, Any], latents: LatentsResult, model: ModelConfig) -> dict[str, Any]:
    """What generate was asked for, from what that came to mean, without what model and classes say."""
    every = [str(label) for label in range(len(latents.classes))]
    own = model.sampler.model_dump(mode="json")
    changed = {name: value for name, value in resolved["sampler"].items() if value != own.get(name)}
    return resolved | {
        "sampler": changed,
        "classes": None if [*map(str, resolved["classes"] or every)] == every else resolved["classes"],
        "per_class": None if resolved["num_images"] else resolved["per_class"],
    }


def _started_as(config: ReportConfig) -> list[str]:
    """Command lines as they were typed, without repetitions."""
    lines: dict[str, None] = {}
    for uri in stage_folders(config).values():
        store = open_store(uri)
        for key in _run_keys(store):
            words = _json(store, key)["command"]
            lines[shlex.join(["python", *words] if words[0].endswith(".py") else words)] = None
    return list(lines)
