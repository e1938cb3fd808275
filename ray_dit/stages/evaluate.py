"""`ray-dit evaluate`: how good a generated dataset is.

Each figure stands beside the same one for held-out real images. Classifiers are trained first, each in a Ray
task: the judge on the real training images, whose features are compared, and those whose score on real images
is a figure itself. Then all images pass them in pieces, and what the figures of ``metrics.registry`` keep of
a piece is one small object. The driver merges those in their order and holds no image. Knows no figure: each
reads the merged statistics and names its values.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from ray_dit.config import EvaluateConfig
from ray_dit.errors import UserError
from ray_dit.folders.images import plan_images, refuse_output_inside
from ray_dit.folders.listing import ListedBy
from ray_dit.folders.quarantine import check_bad
from ray_dit.folders.reading import load_images
from ray_dit.formats.class_matching import match_classes
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import tied_manifest
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.restore import read_whole
from ray_dit.ledger.results import Facts, Manifest, Marker
from ray_dit.ledger.stored_json import canonical
from ray_dit.metrics import FEATURES, JUDGE, Network, Piece, Sets, Tensors, figures_for, measure, merge
from ray_dit.results import BadImage, ClassifierFacts, DatasetResult, EvaluationResult, PieceFacts
from ray_dit.runtime.planning import Known, Plan, Trial, plan_shards
from ray_dit.runtime.progress import progress
from ray_dit.runtime.repairing import finish_shards, repair_shards
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker, shard_name
from ray_dit.runtime.shards import Work, all_markers, make_shards
from ray_dit.runtime.tasks import in_tasks, run_tasks
from ray_dit.stages.evaluation_data import EvaluationData, check, labels_of
from ray_dit.stages.fingerprint import begun_with, open_job
from ray_dit.storage.open import open_store

STAGE = EvaluationResult.stage_name
UNIT = "images"
METRICS_KEY = "metrics.json"
TRIAL_STEPS = 30
"""Steps for which a classifier is trained for a plan."""
TRIAL_IMAGES = 250
"""Images of a piece that is measured for a plan."""
NETWORK = FEATURES[JUDGE]
"""Whose features are compared; the other classifiers are networks of its kind, trained on other images."""
FIGURES = figures_for(NETWORK)


def evaluate(config: EvaluateConfig) -> Manifest[EvaluationResult]:
    """Measures the dataset, or goes on where an earlier run stopped.

    Returns the manifest, which has the metrics.
    """
    data = inputs_of(config)
    inputs = {"images": data.plan.sha256, "dataset": data.dataset.sha256}
    job = open_job(config, STAGE, inputs)
    build = _Build(data, job)
    manifest = job.whole(EvaluationResult)
    if manifest is not None:
        job.restore_markers(manifest)
        if job.damage(manifest):
            metrics: MadeAgain = {METRICS_KEY: lambda: canonical(manifest.facts.to_json())}
            repair_shards(config, job, build, plain=metrics, others=partial(_classifier_again, data))
        return manifest

    def make() -> None:
        with ray_session(config) as ray:
            _train_classifiers(ray, data, job)
            make_shards(ray, config, job, build, Work(STAGE, UNIT, data.piece_sizes))

    return finish_shards(job, make, lambda: _finish(data, job))


def plan_evaluate(config: EvaluateConfig, *, begun: float) -> Plan:
    """What the evaluation will make and take; see ``runtime.planning``."""
    data = inputs_of(config)
    lookers = [len(data.classifiers) if kind == "heldout" else 1 for kind in data.piece_kinds]  # see Measurer
    loads = [rows * count for rows, count in zip(data.piece_sizes, lookers, strict=True)]
    trained = len(data.classifiers) * config.classifier.steps * config.classifier.batch_size
    rows = data.plan.rows(heldout=False)
    spread = rows[np.linspace(0, len(rows) - 1, min(len(rows), 16 * TRIAL_IMAGES)).astype(np.int64)]
    size = min(TRIAL_IMAGES, len(spread))
    small = replace(data, plan=data.plan.take(spread), piece_size=size)

    def try_classifiers(ray: Any) -> tuple[dict[str, float], int]:
        job = Job(open_store(config.output), STAGE, "")
        left = [name for name in data.classifiers if job.marker(name, ClassifierFacts) is None]
        # The first time, processes are started and load torch, one after the other; only the second time do
        # they compute side by side, as they will for most of the job.
        walls: list[float] = []
        tried: list[tuple[str, float, int]] = []
        for _ in range(2):
            since = time.monotonic()
            tried = list(run_tasks(ray, try_classifier, data.classifiers, data, threads=config.threads))
            walls.append(time.monotonic() - since)
        slowest = max((seconds for name, seconds, _ in tried if name in left), default=0.0)
        loading = max(walls[0] - walls[1], 0.0) if left else 0.0
        return {"classifiers": loading + slowest}, sum(size for _, _, size in tried)

    return plan_shards(
        config,
        Work(STAGE, UNIT, data.piece_sizes),
        Trial(_TrialBuild(small), size, len(spread) // size, equal_bytes=True),
        Known(
            network_evaluations=trained + sum(loads),
            bytes_in=data.plan.stored_bytes() + sum(listing.bytes for listing in data.dataset.listings),
            flops=0.0,
            bytes_out=0.0,
        ),
        begun=begun,
        loads=loads,
        before=try_classifiers,
    )


def try_classifier(data: EvaluationData, name: str) -> tuple[str, float, int]:
    """Trains a classifier for a few steps.

    Returns its name, the seconds that all its steps will take, and the bytes of its weights.
    """
    assert NETWORK.train is not None
    config = data.config
    few = config.classifier.model_copy(update={"steps": min(TRIAL_STEPS, config.classifier.steps)})
    begun = time.monotonic()
    images, labels = replace(data, config=config.model_copy(update={"classifier": few})).training_images(name)
    read = time.monotonic()
    weights, _ = NETWORK.train(images, labels, data.num_classes, few, config.seed)
    done = time.monotonic()
    reading = (read - begun) / len(images) * data.training_count(name)
    return name, reading + (done - read) / few.steps * config.classifier.steps, len(weights)


def inputs_of(config: EvaluateConfig) -> EvaluationData:
    """The images and the dataset; UserError where they can't be compared."""
    refuse_output_inside(config.output, config.images)
    # an evaluation keeps to the dataset it has begun with, though that was extended since
    dataset = tied_manifest(config.dataset, DatasetResult, begun_with(config.output, "dataset"))
    plan = plan_images(config.images, ListedBy(in_tasks(config)))
    order = match_classes(plan.classes, labels_of(dataset))
    if order is not None:  # classes are numbered as the dataset's, whatever the order of the folders
        plan = plan.in_order_of([plan.classes[folder] for folder in order])
    data = EvaluationData(config, plan, dataset)
    check(data)
    return data


def _train_classifiers(ray: Any, data: EvaluationData, job: Job) -> None:
    """Trains those classifiers that are missing, each in a task of its own, at the same time."""
    missing = [name for name in data.classifiers if job.marker(name, ClassifierFacts) is None]
    run = job.run({"what": "classifiers"})
    if missing:
        with progress("classifiers", len(missing), "trained") as advance:
            tasks = run_tasks(ray, train_one, missing, data, job, threads=data.config.threads)
            for done, _ in enumerate(tasks, start=1):
                advance(done)
    run.end(classifiers=len(missing))


def train_one(data: EvaluationData, job: Job, name: str) -> None:
    """Trains and stores one classifier; UserError where none of its images can be read."""
    weights, facts = trained_classifier(data, name)
    job.put(name, f"classifiers/{name}.safetensors", weights, facts)


def trained_classifier(data: EvaluationData, name: str) -> tuple[bytes, ClassifierFacts]:
    """A classifier's weights and facts; UserError where none of its images can be read."""
    images, labels = data.training_images(name)
    if not len(images):
        raise UserError(f"none of the training images in {data.plan.uri} can be read: repair them")
    assert NETWORK.train is not None
    weights, shape = NETWORK.train(images, labels, data.num_classes, data.config.classifier, data.config.seed)
    return weights, ClassifierFacts(classifier=name, images=len(images), **shape.to_json())


def _classifier_again(data: EvaluationData, ray: Any, marker: Marker[Facts]) -> bytes | None:
    """The weights of the classifier with this marker; None where it is that of something else."""
    name = marker.facts.to_json().get("classifier")
    if name is None:
        return None
    ((weights, _),) = run_tasks(ray, trained_classifier, [name], data, threads=data.config.threads)
    return weights


def load_classifier(job: Job, name: str) -> Network:
    """A trained classifier."""
    marker = _classifier_marker(job, name)
    return NETWORK.load(lambda: read_whole(job.store, marker.key, marker.sha256), marker.facts)


def _classifier_marker(job: Job, name: str) -> Marker[ClassifierFacts]:
    marker = job.marker(name, ClassifierFacts)
    if marker is None:
        raise RuntimeError(f"classifier {name} has not been trained")
    return marker


@dataclass(frozen=True)
class _Build:
    """Makes the measurer inside its actor."""

    data: EvaluationData
    job: Job

    def __call__(self) -> ShardMaker:
        return Measurer(self.data, {name: load_classifier(self.job, name) for name in self.data.classifiers})


@dataclass(frozen=True)
class _TrialBuild:
    """Makes the measurer of a trial, with a judge that has learned next to nothing."""

    data: EvaluationData

    def __call__(self) -> ShardMaker:
        assert NETWORK.train is not None
        plan, few = self.data.plan, self.data.config.classifier.model_copy(update={"steps": 1})
        images, kept, _ = load_images(plan, range(min(len(plan.keys), 2)))
        weights, shape = NETWORK.train(images, plan.labels[kept], self.data.num_classes, few, seed=0)
        return Measurer(self.data, {JUDGE: NETWORK.load(lambda: weights, shape)})


@dataclass(frozen=True)
class Decoded:
    """The images of a piece, uint8 [N, S, S, 3] with labels [N].

    ``compared`` marks those a distance is taken between.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    compared: NDArray[np.bool_]
    classifiers: tuple[str, ...]
    """Who looks at them; the judge is always among them."""
    facts: PieceFacts


class Measurer:
    """Measures pieces: passes their images through the classifiers and keeps what the figures need."""

    def __init__(self, data: EvaluationData, classifiers: Mapping[str, Network]) -> None:
        self._data, self._classifiers = data, classifiers

    def prepare(self, shard: int) -> Decoded:
        """The piece's images: the pieces of real ones come first, then one per generated shard."""
        num_real = len(self._data.real_pieces)
        return self._real(shard) if shard < num_real else self._generated(shard, shard - num_real)

    def compute(self, inputs: Decoded) -> tuple[Decoded, Tensors]:
        """What the figures keep of what the classifiers see."""
        seen = {name: self._classifiers[name](inputs.images) for name in inputs.classifiers}
        piece = Piece(
            features=seen[JUDGE].features,
            compared=torch.from_numpy(inputs.compared),
            labels=torch.from_numpy(inputs.labels),
            logits={name: one.logits for name, one in seen.items() if one.logits is not None},
            num_classes=self._data.num_classes,
        )
        return inputs, measure(FIGURES, piece)

    def finish(self, outputs: tuple[Decoded, Tensors]) -> Made:
        """The measures as safetensors."""
        inputs, tensors = outputs
        return Made(f"measures/{shard_name(inputs.facts.shard)}.safetensors", bytes_of(tensors), inputs.facts)

    def _real(self, number: int) -> Decoded:
        plan, rows = self._data.plan, self._data.real_pieces[number]
        heldout = bool(plan.heldout[rows[0]])
        images, kept, bad = load_images(plan, rows, all_there=True)
        compared, classifiers = np.ones(len(kept), np.bool_), (JUDGE,)
        if heldout:
            # Only held-out images show what a classifier has learned, so only they are read by all of them.
            everyone = plan.rows(heldout=True)
            compared = np.isin(kept, everyone[self._data.subset(len(everyone), self._data.num_compared)])
            classifiers = self._data.classifiers
        facts = PieceFacts(
            shard=number,
            of="heldout" if heldout else "train",
            seen=len(rows),
            rows=len(kept),
            bad=tuple((entry.key, entry.reason) for entry in bad),
        )
        return Decoded(images, plan.labels[kept], compared, classifiers, facts)

    def _generated(self, number: int, shard: int) -> Decoded:
        rows = np.arange(self._data.shards[shard].rows)
        images, labels = self._data.shard_images(shard, rows)
        # As many as there are held-out ones: a Fréchet distance grows as samples get fewer.
        compared = np.isin(
            rows + self._data.shards[shard].before,
            self._data.subset(self._data.num_generated, self._data.num_compared),
        )
        facts = PieceFacts(shard=number, of="generated", seen=len(rows), rows=len(rows), bad=())
        return Decoded(images, labels, compared, (JUDGE,), facts)


@dataclass
class Total:
    """The merged measures of one set of images."""

    tensors: Tensors = field(default_factory=dict[str, torch.Tensor])
    rows: int = 0

    def add(self, tensors: Tensors, rows: int) -> None:
        """Takes one piece in; pieces come in their order, which fixes the last bits."""
        self.tensors = merge(FIGURES, self.tensors, tensors)
        self.rows += rows


def _finish(data: EvaluationData, job: Job) -> Manifest[EvaluationResult]:
    totals = {kind: Total() for kind in ("train", "heldout", "generated")}
    bad: list[BadImage] = []
    for marker in all_markers(job, data.num_pieces, PieceFacts):
        piece = marker.facts
        bad += [BadImage.as_before(*entry) for entry in piece.bad]
        totals[piece.of].add(tensors_of(read_whole(job.store, marker.key, marker.sha256)), piece.rows)
    check_bad(len(bad), len(data.plan.keys), data.config.images.max_bad, data.plan.uri, bad)
    result = _result(data, totals["train"], totals["heldout"], totals["generated"], len(bad))
    job.put_plain(METRICS_KEY, canonical(result.to_json()), computed=True)
    return job.finish(result, objects=_objects(data, job))


def _objects(data: EvaluationData, job: Job) -> Iterator[Marker[Any]]:
    for name in data.classifiers:
        yield _classifier_marker(job, name)
    yield from all_markers(job, data.num_pieces, PieceFacts)


def _result(
    data: EvaluationData, train: Total, heldout: Total, generated: Total, bad: int = 0
) -> EvaluationResult:
    sets = Sets(
        train=train.tensors,
        heldout=heldout.tensors,
        generated=generated.tensors,
        classes=data.plan.classes,
        trained_on={name: data.training_count(name) for name in data.classifiers},
    )
    values = {name: value for figure in FIGURES for name, value in figure.values(sets)}
    counts = {"num_images": generated.rows, "num_train": train.rows, "num_heldout": heldout.rows}
    return EvaluationResult.model_validate(values | counts | ({"bad": bad} if bad else {}))
