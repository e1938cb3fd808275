"""How good generated images are: networks that see them, statistics of what was seen, figures from those.

Knows no storage of datasets, no stage and no Ray. A set of images is measured piece by piece, anywhere: a
network turns the images of a piece into features and logits, each statistic keeps a few small tensors of
them, and those merge in the order of the pieces. Figures read merged statistics only. ``registry`` lists the
networks and the figures.
"""

from ray_dit.metrics.base import (
    JUDGE,
    ON_GENERATED,
    ON_REAL,
    FeatureNetwork,
    Figure,
    Network,
    Piece,
    Seen,
    Sets,
    Tensors,
    Value,
    measure,
    merge,
)
from ray_dit.metrics.registry import FEATURES, FIGURES, figures_for

__all__ = [
    "FEATURES",
    "FIGURES",
    "JUDGE",
    "ON_GENERATED",
    "ON_REAL",
    "FeatureNetwork",
    "Figure",
    "Network",
    "Piece",
    "Seen",
    "Sets",
    "Tensors",
    "Value",
    "figures_for",
    "measure",
    "merge",
]
