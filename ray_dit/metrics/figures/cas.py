"""Classification accuracy score (Ravuri & Vinyals 2019): train on generated, test on held-out real images."""

from collections.abc import Iterator

from ray_dit.core.metrics import accuracy
from ray_dit.metrics.base import JUDGE, ON_GENERATED, ON_REAL, Figure, Sets, Value
from ray_dit.metrics.statistics import COUNTS, counts


def values(sets: Sets) -> Iterator[tuple[str, Value]]:
    """The score, and over how many training images.

    The ceiling is that of a classifier trained on as many real ones.
    """
    assert sets.heldout is not None, "the score is taken on held-out images"
    # Where as many real images are all of them, the judge is the classifier trained on them.
    on_real = ON_REAL if ON_REAL in sets.trained_on else JUDGE
    yield "cas_accuracy", accuracy(counts(sets.heldout, ON_GENERATED))
    yield "cas_accuracy_real", accuracy(counts(sets.heldout, on_real))
    yield "cas_images", sets.trained_on[ON_GENERATED]


FIGURE = Figure(
    name="cas_accuracy",
    ceiling="cas_accuracy_real",
    best=1.0,
    higher_is_better=True,
    needs_classes=True,
    statistics=(COUNTS,),
    values=values,
)
