"""The feature networks and the figures there are; nothing else imports one of them."""

from ray_dit.metrics.base import FeatureNetwork, Figure
from ray_dit.metrics.features import inception, judge
from ray_dit.metrics.figures import cas, class_accuracy, frechet

FEATURES: dict[str, FeatureNetwork] = {
    network.name: network for network in (judge.NETWORK, inception.NETWORK)
}
FIGURES: dict[str, Figure] = {
    figure.name: figure for figure in (class_accuracy.FIGURE, frechet.FIGURE, cas.FIGURE)
}


def figures_for(network: FeatureNetwork) -> list[Figure]:
    """The figures that a network's features can give."""
    return [figure for figure in FIGURES.values() if network.knows_classes or not figure.needs_classes]
