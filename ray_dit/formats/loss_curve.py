"""The loss curve of a training: what a point of it holds, and its JSON lines; knows no models and no workers.

Of a point the numbers in ``COLUMNS`` come first, then a mean loss per range of t. What a point does not have
is NaN in the rows of a checkpoint and missing in the lines.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

COLUMNS = ("step", "loss", "gradient_norm", "learning_rate", "validation_loss")
"""What the first numbers of a point are: optimizer steps done; since the point before the mean loss and the
mean norm of the gradient, before it was clipped; the learning rate of the last step; the mean loss on
held-out samples."""
BY_T = "loss_by_t"
"""Name of the mean losses since the point before of the samples whose t fell in each range."""

Point = tuple[float, ...]
"""The numbers of a point."""


def width(t_ranges: Sequence[str]) -> int:
    """How many numbers a point has."""
    return len(COLUMNS) + len(t_ranges)


def widened(points: Iterable[Sequence[float]], columns: int) -> list[Point]:
    """Points of a version that kept fewer numbers, with NaN for what is missing."""
    return [(*point, *[math.nan] * (columns - len(point))) for point in points]


def named(point: Sequence[float], t_ranges: Sequence[str] = ()) -> dict[str, Any]:
    """The point by name; a range that no sample fell in is None, other numbers that are NaN are left out."""
    known: dict[str, Any] = {
        name: value for name, value in zip(COLUMNS, point, strict=False) if not math.isnan(value)
    }
    known["step"] = int(point[0])
    by_t = [None if math.isnan(value) else value for value in point[len(COLUMNS) :]]
    if any(value is not None for value in by_t):
        known[BY_T] = dict(zip(t_ranges, by_t, strict=True))
    return known


def curve_lines(points: Iterable[Sequence[float]], t_ranges: Sequence[str] = ()) -> bytes:
    """The points as JSON, one per line."""
    return "".join(json.dumps(named(point, t_ranges)) + "\n" for point in points).encode()


def read_curve(data: bytes) -> list[dict[str, Any]]:
    """The inverse of ``curve_lines``; also of what earlier versions wrote, a list of [step, loss]."""
    text = data.decode()
    if text.startswith("["):
        pairs = cast("list[tuple[float, float]]", json.loads(text))
        return [{"step": int(step), "loss": loss} for step, loss in pairs]
    return [json.loads(line) for line in text.splitlines()]


def earlier_lines(points: Iterable[Sequence[float]]) -> bytes:
    """The points as earlier versions wrote them, for a folder that has them so."""
    return (json.dumps([[int(point[0]), point[1]] for point in points]) + "\n").encode()
