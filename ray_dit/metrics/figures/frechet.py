"""Fréchet distance of the features (Heusel et al. 2017); with the features of ``inception`` it is the FID."""

from collections.abc import Iterator

from ray_dit.core.metrics import frechet_distance
from ray_dit.metrics.base import Figure, Sets, Value
from ray_dit.metrics.statistics import MOMENTS, moments


def values(sets: Sets) -> Iterator[tuple[str, Value]]:
    """To the training images, and over how many.

    The ceiling is the distance of as many held-out real ones.
    """
    train, generated = moments(sets.train), moments(sets.generated)
    yield "frechet_distance", frechet_distance(train, generated)
    yield "frechet_images", generated.count
    if sets.heldout is not None:
        yield "frechet_distance_real_heldout", frechet_distance(train, moments(sets.heldout))


FIGURE = Figure(
    name="frechet_distance",
    ceiling="frechet_distance_real_heldout",
    best=0.0,
    higher_is_better=False,
    needs_classes=False,
    statistics=(MOMENTS,),
    values=values,
)
