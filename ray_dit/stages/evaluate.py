"""`ray-dit evaluate`: how good a generated dataset is, each figure beside the same one for held-out real pictures.

Three classifiers are trained, each in a Ray task: the judge on the real training pictures, and two for the
classification accuracy score (Ravuri & Vinyals 2019: train on generated, test on real), one on generated and one on as
many real pictures. Then all pictures pass the judge in pieces: hits a class and statistics of its features, one small
object a piece. The driver merges those in their order and holds no picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from ray_dit.config import EvaluateConfig
from ray_dit.core.classifier import FEATURE_DIM, Classifier, create, predict, train_classifier
from ray_dit.core.metrics import (
    FeatureStatistics,
    accuracy,
    class_counts,
    frechet_distance,
    per_class_accuracy,
)
from ray_dit.errors import UserError
from ray_dit.session import ray_session
from ray_dit.stages.evaluation_data import JUDGE, ON_GENERATED, ON_REAL, EvaluationData, check
from ray_dit.stages.fingerprint import open_job
from ray_dit.stages.images import BadImage, check_bad, load_images, plan_images
from ray_dit.stages.progress import progress
from ray_dit.stages.shard_jobs import ShardMaker, all_markers, make_shards, shard_name
from ray_dit.storage.job import Job, canonical, manifest_sha256, read_manifest

STAGE = "evaluate"
ACTORS = 2
"""Processes that judge pieces."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Judges the dataset, or goes on where an earlier run stopped; returns the manifest, which has the metrics."""
    plan = plan_images(config.images)
    dataset = read_manifest(config.dataset, "generate")
    data = EvaluationData(config, plan, dataset)
    check(data)
    inputs = {"images": plan.sha256, "dataset": manifest_sha256(dataset)}
    job = open_job(config, STAGE, inputs)
    manifest = job.finished()
    if manifest is not None:
        return manifest
    with ray_session(config) as ray:
        shared = ray.put(data)
        _train_classifiers(ray, data, shared, job)
        make_shards(
            ray,
            job,
            _Build(shared, job),
            data.num_pieces,
            what="evaluate",
            unit="pictures",
            total=len(plan.keys) + data.num_generated,
            threads=config.threads,
            actors=ACTORS,
            use_gpu=False,
            count="seen",
        )
    return _finish(data, job)


def _train_classifiers(ray: Any, data: EvaluationData, shared: Any, job: Job) -> None:
    """Trains those classifiers that are missing, each in a task of its own, at the same time."""
    missing = [name for name in data.classifiers if job.marker(name) is None]
    run = job.run({"what": "classifiers"})
    if missing:
        remote = ray.remote(num_cpus=data.config.threads)(_train_task)
        waiting = [remote.remote(shared, name, job) for name in missing]
        with progress("classifiers", len(waiting), "trained") as advance:
            while waiting:
                ready, waiting = ray.wait(waiting)
                for error in ray.get(ready):
                    if error is not None:
                        raise UserError(error)
                advance(len(missing) - len(waiting))
    run.end(classifiers=len(missing))


def _train_task(data: EvaluationData, name: str, job: Job) -> str | None:
    """Trains and stores one classifier; a user's error comes back as its message, for an exception would be retried."""
    torch.set_num_threads(data.config.threads)
    torch.use_deterministic_algorithms(True)
    try:
        images, labels = data.training_pictures(name)
        if not len(images):
            raise UserError(f"none of the training pictures in {data.plan.uri} can be read: repair them")
    except UserError as error:
        return str(error)
    model = train_classifier(images, labels, data.num_classes, data.config.classifier, data.config.seed)
    facts = {
        "classifier": name,
        "images": len(images),
        "num_classes": model.num_classes,
        "image_size": model.image_size,
        "width": model.width,
    }
    job.put(name, f"classifiers/{name}.safetensors", bytes_of(model.state_dict()), facts)
    return None


def load_classifier(job: Job, name: str) -> Classifier:
    """A trained classifier, in evaluation mode."""
    marker = job.marker(name)
    if marker is None:
        raise RuntimeError(f"classifier {name} has not been trained")
    model = create(marker["num_classes"], marker["image_size"], marker["width"], seed=0)
    model.load_state_dict(tensors_of(job.store.get(marker["key"])))
    return model.eval()


@dataclass(frozen=True)
class _Build:
    """Makes the measurer inside its actor."""

    data: Any
    job: Job

    def __call__(self) -> ShardMaker:
        import ray

        return Measurer(ray.get(self.data), self.job)


class Measurer:
    """Judges pieces: hits a class, and statistics of the judge's features over the pictures that are compared."""

    def __init__(self, data: EvaluationData, job: Job) -> None:
        self._data = data
        self._classifiers = {name: load_classifier(job, name) for name in data.classifiers}

    def make(self, shard: int) -> tuple[str, bytes, dict[str, Any]]:
        """Key, bytes and facts of a piece's measures."""
        num_real = len(self._data.real_pieces)
        tensors, facts = self._real(shard) if shard < num_real else self._generated(shard - num_real)
        return f"measures/{shard_name(shard)}.safetensors", bytes_of(tensors), facts

    def _real(self, piece: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        plan, rows = self._data.plan, self._data.real_pieces[piece]
        heldout = bool(plan.heldout[rows[0]])
        images, kept, bad = load_images(plan, rows)
        if heldout:
            everyone = plan.rows(heldout=True)
            compared = np.isin(kept, everyone[self._data.subset(len(everyone), self._data.num_compared)])
            tensors = self._measures(images, plan.labels[kept], compared, self._data.classifiers)
        else:
            tensors = self._measures(images, plan.labels[kept], np.ones(len(kept), np.bool_), (JUDGE,))
        facts = {"of": "heldout" if heldout else "train", "seen": len(rows), "rows": len(kept)}
        return tensors, facts | {"bad": [[entry.key, entry.reason] for entry in bad]}

    def _generated(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        shard = self._data.shards[number]
        rows = np.arange(shard["rows"])
        images, labels = self._data.shard_pictures(number, rows)
        compared = np.isin(
            rows + shard["before"], self._data.subset(self._data.num_generated, self._data.num_compared)
        )
        tensors = self._measures(images, labels, compared, (JUDGE,))
        return tensors, {"of": "generated", "seen": len(rows), "rows": len(rows), "bad": []}

    def _measures(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        compared: NDArray[np.bool_],
        classifiers: tuple[str, ...],
    ) -> dict[str, Tensor]:
        """Counts of each classifier, and the feature statistics of the ``compared`` pictures by the judge."""
        tensors: dict[str, Tensor] = {}
        for name in classifiers:
            logits, features = predict(self._classifiers[name], images)
            tensors[f"counts.{name}"] = class_counts(
                torch.from_numpy(labels), logits.argmax(dim=1), self._data.num_classes
            )
            if name == JUDGE:
                statistics = FeatureStatistics.of(features[torch.from_numpy(compared)])
                tensors["count"] = torch.tensor(statistics.count)
                tensors["mean"], tensors["scatter"] = statistics.mean, statistics.scatter
        return tensors


@dataclass
class Total:
    """The merged measures of one kind of pictures."""

    statistics: FeatureStatistics
    counts: dict[str, Tensor]
    rows: int = 0

    def add(self, tensors: dict[str, Tensor], rows: int) -> None:
        """Takes one piece in; pieces come in their order, which fixes the last bits."""
        piece = FeatureStatistics(int(tensors["count"]), tensors["mean"], tensors["scatter"])
        self.statistics = self.statistics.merge(piece)
        self.rows += rows
        for name, counts in tensors.items():
            if name.startswith("counts."):
                self.counts[name[7:]] = self.counts.get(name[7:], torch.zeros_like(counts)) + counts


def _finish(data: EvaluationData, job: Job) -> dict[str, Any]:
    totals = {
        kind: Total(FeatureStatistics.empty(FEATURE_DIM), {}) for kind in ("train", "heldout", "generated")
    }
    bad: list[BadImage] = []
    for marker in all_markers(job, data.num_pieces):
        bad += [BadImage(*entry) for entry in marker["bad"]]
        totals[marker["of"]].add(tensors_of(job.store.get(marker["key"])), marker["rows"])
    check_bad(len(bad), len(data.plan.keys), data.config.images.max_bad, data.plan.uri, bad)
    metrics = _metrics(data, totals["train"], totals["heldout"], totals["generated"])
    job.put_plain("metrics.json", canonical(metrics))
    return job.finish(metrics, objects=_objects(data, job))


def _objects(data: EvaluationData, job: Job) -> Iterator[dict[str, Any]]:
    for name in data.classifiers:
        yield job.marker(name) or {}
    yield from all_markers(job, data.num_pieces)


def _metrics(data: EvaluationData, train: Total, heldout: Total, generated: Total) -> dict[str, Any]:
    """All figures by name; a name with ``real`` is the ceiling of the one without."""
    on_real = ON_REAL if ON_REAL in data.classifiers else JUDGE
    return {
        "class_accuracy": accuracy(generated.counts[JUDGE]),
        "class_accuracy_real_heldout": accuracy(heldout.counts[JUDGE]),
        "frechet_distance": frechet_distance(train.statistics, generated.statistics),
        "frechet_distance_real_heldout": frechet_distance(train.statistics, heldout.statistics),
        "frechet_images": data.num_compared,
        "cas_accuracy": accuracy(heldout.counts[ON_GENERATED]),
        "cas_accuracy_real": accuracy(heldout.counts[on_real]),
        "cas_images": data.training_count(ON_GENERATED),
        "per_class_accuracy": _by_class(data, generated),
        "per_class_accuracy_real_heldout": _by_class(data, heldout),
        "num_images": generated.rows,
        "num_train": train.rows,
        "num_heldout": heldout.rows,
    }


def _by_class(data: EvaluationData, total: Total) -> dict[str, float | None]:
    return dict(zip(data.plan.classes, per_class_accuracy(total.counts[JUDGE]), strict=True))
