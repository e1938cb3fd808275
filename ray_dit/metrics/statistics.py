"""The statistics that several figures read: hits per class, and moments of the features."""

import torch

from ray_dit.core.metrics import FeatureStatistics, class_counts
from ray_dit.metrics.base import Piece, Statistic, Tensors

PREFIX = "counts."


def counts(of: Tensors, classifier: str) -> torch.Tensor:
    """int64 [2, K] of a classifier.

    They are, for each class, how many images were read as that class and how many there are.
    """
    return of[PREFIX + classifier]


def moments(of: Tensors) -> FeatureStatistics:
    """Count, mean and scatter of the compared images' features."""
    return FeatureStatistics(int(of["count"]), of["mean"], of["scatter"])


def moment_tensors(statistics: FeatureStatistics) -> Tensors:
    """The same as tensors, for ``moments`` to read."""
    return {
        "count": torch.tensor(statistics.count),
        "mean": statistics.mean,
        "scatter": statistics.scatter,
    }


def _measure_counts(piece: Piece) -> Tensors:
    return {
        PREFIX + name: class_counts(piece.labels, logits.argmax(dim=1), piece.num_classes)
        for name, logits in piece.logits.items()
    }


def _merge_counts(total: Tensors, piece: Tensors) -> Tensors:
    # Not every piece is read by every classifier: a name in only one of them stays as it is.
    kept = {name: tensor for name, tensor in total.items() if name.startswith(PREFIX)}
    for name, tensor in piece.items():
        if name.startswith(PREFIX):
            kept[name] = kept[name] + tensor if name in kept else tensor
    return kept


def _measure_moments(piece: Piece) -> Tensors:
    return moment_tensors(FeatureStatistics.of(piece.features[piece.compared]))


def _merge_moments(total: Tensors, piece: Tensors) -> Tensors:
    new = moments(piece)
    before = moments(total) if total else FeatureStatistics.empty(len(new.mean))
    return moment_tensors(before.merge(new))


COUNTS = Statistic(measure=_measure_counts, merge=_merge_counts)
MOMENTS = Statistic(measure=_measure_moments, merge=_merge_moments)
