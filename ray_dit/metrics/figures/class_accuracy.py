"""Class accuracy: the part of the generated images in which the judge reads the class that was asked for."""

from collections.abc import Iterator

from ray_dit.core.metrics import accuracy, per_class_accuracy
from ray_dit.metrics.base import JUDGE, Figure, Sets, Tensors, Value
from ray_dit.metrics.statistics import COUNTS, counts


def values(sets: Sets) -> Iterator[tuple[str, Value]]:
    """Over all images and for each class; the ceiling is that of held-out real ones."""
    yield "class_accuracy", accuracy(counts(sets.generated, JUDGE))
    yield "per_class_accuracy", _by_class(sets.generated, sets.classes)
    if sets.heldout is not None:
        yield "class_accuracy_real_heldout", accuracy(counts(sets.heldout, JUDGE))
        yield "per_class_accuracy_real_heldout", _by_class(sets.heldout, sets.classes)


def _by_class(of: Tensors, classes: tuple[str, ...]) -> dict[str, float | None]:
    return dict(zip(classes, per_class_accuracy(counts(of, JUDGE)), strict=True))


FIGURE = Figure(
    name="class_accuracy",
    ceiling="class_accuracy_real_heldout",
    best=1.0,
    higher_is_better=True,
    needs_classes=True,
    statistics=(COUNTS,),
    values=values,
)
