"""What a feature network, a statistic and a figure are; knows none of them by name.

N images, S their side, D features, K classes of the dataset.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from ray_dit.results import ClassifierShape, Value

JUDGE, ON_GENERATED, ON_REAL = "judge", "cas_generated", "cas_real"
"""The classifiers of an evaluation: trained on all real training images; on generated ones; on as many real
ones."""

Tensors = dict[str, Tensor]
"""Named tensors: what is kept of a piece, and what that merges to."""


class Seen(NamedTuple):
    """What a network made of images."""

    features: Float[Tensor, "N D"]
    logits: Float[Tensor, "N K"] | None
    """Of the dataset's classes; None from a network that does not know them."""


Network = Callable[[UInt8[np.ndarray, "N S S 3"]], Seen]
"""Images to what is seen in them; a row depends on its image alone, up to the last bits that the batch
decides."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Weights that are not trained here."""

    source: str
    """Where they come from, for messages."""
    device: str


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A network whose features are compared, as an entry of the registry."""

    name: str
    dim: int
    """D, the number of its features."""
    knows_classes: bool
    """Whether it reads the dataset's own classes, so that its logits can be judged by the labels."""
    load: Callable[[Callable[[], bytes], Any], Network]
    """(reads the weights, what they are) → the network, ready to use. What they are is the shape that
    ``train`` gave, or ``Published``. Weights are read last: they may be large and far away."""
    train: Callable[..., tuple[bytes, ClassifierShape]] | None = None
    """(images, labels, num_classes, settings, seed) → weights and the shape needed to load them."""
    published: str | None = None
    """Where the weights of a network are that is not trained here."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Images of one set that were looked at together: what each network saw, and what the images are."""

    features: Float[Tensor, "N D"]
    """Of the feature network."""
    compared: Bool[Tensor, " N"]
    """Which of them take part where sets of equal size are compared."""
    labels: Int64[Tensor, " N"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    logits: Mapping[str, Float[Tensor, "N K"]] = field(default_factory=dict[str, Tensor])
    """By classifier; empty where no network knows the classes."""
    num_classes: int = 0


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """What is kept of a piece, small whatever the number of images, and how it merges."""

    measure: Callable[[Piece], Tensors]
    merge: Callable[[Tensors, Tensors], Tensors]
    """(merged so far, one more piece) → both; the first is empty at the start. Each takes its own names out
    of many."""


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The merged statistics of the sets that figures compare."""

    train: Tensors
    """Real images that models were trained on: what generated ones are compared with."""
    generated: Tensors
    heldout: Tensors | None = None
    """Real images no model has seen, which set the ceiling; None: there are none, and no ceiling is given."""
    classes: tuple[str, ...] = ()
    trained_on: Mapping[str, int] = field(default_factory=dict[str, int])
    """Classifiers that were trained, and on how many images each."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of merit, as an entry of the registry."""

    name: str
    """Of its value; among ``values`` there are others that belong to it."""
    ceiling: str
    """Name of the same value for real images: what perfect generated ones would have."""
    best: float
    higher_is_better: bool
    needs_classes: bool
    """Whether it reads logits of the dataset's classes, which not every feature network has."""
    statistics: tuple[Statistic, ...]
    values: Callable[[Sets], Iterable[tuple[str, Value]]]
    """All its values by name."""


def measure(figures: Iterable[Figure], piece: Piece) -> Tensors:
    """What these figures need to keep of a piece."""
    kept: Tensors = {}
    for statistic in _statistics(figures):
        kept |= statistic.measure(piece)
    return kept


def merge(figures: Iterable[Figure], total: Tensors, piece: Tensors) -> Tensors:
    """The statistics of both; pieces come in their order, which fixes the last bits.

    ``total`` is empty at first.
    """
    merged: Tensors = {}
    for statistic in _statistics(figures):
        merged |= statistic.merge(total, piece)
    return merged


def _statistics(figures: Iterable[Figure]) -> list[Statistic]:
    """Each once: figures share them."""
    found: list[Statistic] = []
    for figure in figures:
        found += [statistic for statistic in figure.statistics if statistic not in found]
    return found
