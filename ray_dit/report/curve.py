"""A line chart as inline SVG; knows neither training nor files, only points."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36
MAX_POINTS = 600
"""More points than this are averaged in groups: a page need not hold a long run's whole log."""

Point = tuple[float, float]


def curve(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """The points as a line over a linear x and a logarithmic y axis (linear where a value is not positive).

    Raises:
        ValueError: no point, or a value that is not finite.
    """
    if not points or not all(math.isfinite(value) for point in points for value in point):
        raise ValueError("a curve needs at least one point, all of them finite")
    points = thinned(points)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 3
    to_y = math.log10 if logarithmic else float
    y_ticks = _log_ticks(min(ys), max(ys)) if logarithmic else _ticks(min(ys), max(ys))
    x_ticks = _ticks(min(xs), max(xs))
    low = min(to_y(min(ys)), to_y(y_ticks[0]))
    high = max(to_y(max(ys)), to_y(y_ticks[-1]))

    def place(x: float, y: float) -> Point:
        across = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        up = (to_y(y) - low) / ((high - low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    rows = [_y_tick(place(xs[0], tick)[1], tick) for tick in y_ticks]
    columns = [_x_tick(place(tick, ys[0])[0], tick) for tick in x_ticks if xs[0] <= tick <= xs[-1]]
    title = f"{y_label} over {x_label}, from {ys[0]:.4g} to {ys[-1]:.4g}"
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(rows + columns)
        + f'<polyline class="line" points="{line}"/>'
        + f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">'
        + f"{escape(x_label)}</text></svg>"
    )


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most ``most`` points: the means of consecutive groups."""
    size = -(-len(points) // most)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / about))
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= span / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around [low, high]; powers alone over more than three decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    sizes = (1,) if len(decades) > 4 else (1, 2, 5)
    ticks = [size * 10.0**decade for decade in decades for size in sizes]
    first = max((number for number, tick in enumerate(ticks) if tick <= low), default=0)
    last = next((number for number, tick in enumerate(ticks) if tick >= high), len(ticks) - 1)
    return ticks[first : last + 1]


def _y_tick(y: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    )


def _x_tick(x: float, value: float) -> str:
    return (
        f'<text class="axis" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:,.6g}</text>'
    )
