"""Lines with error bars over two logarithmic axes, as SVG; knows points, and not what they mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which the colour-blind can tell apart."""
PANEL, HIGH, MARGIN, TOP = 400, 300, 56, 20
DASHES = ' stroke-dasharray="5 4"'


@dataclass(frozen=True)
class Line:
    """One line; lines of one color belong together."""

    label: str
    color: int
    dashed: bool
    points: Sequence[tuple[float, float, float]]
    """(x, y, half of the error bar), x and y positive."""


@dataclass(frozen=True)
class Panel:
    """A chart of its own, beside the others."""

    x_label: str
    y_label: str
    lines: Sequence[Line]


def chart(panels: Sequence[Panel]) -> str:
    """The panels side by side, with one legend: that of the first. ValueError for a panel without points."""
    width = len(panels) * (PANEL + MARGIN)
    rows = -(-len(panels[0].lines) // 4)
    height = TOP + HIGH + 56 + 16 * rows
    drawn = "".join(_panel(panel, number * (PANEL + MARGIN)) for number, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
        f"{drawn}{_legend(panels[0].lines)}</svg>\n"
    )


def _panel(panel: Panel, left: int) -> str:
    points = [point for line in panel.lines for point in line.points]
    low_x, high_x = _bounds([x for x, _, _ in points])
    low_y, high_y = _bounds([y for _, y, _ in points])

    def x_at(value: float) -> float:
        return left + MARGIN + _part(value, low_x, high_x) * (PANEL - MARGIN)

    def y_at(value: float) -> float:
        return TOP + HIGH - _part(value, low_y, high_y) * HIGH

    parts = [
        _text(left + PANEL, TOP + HIGH + 32, panel.x_label, "end"),
        _text(left + MARGIN, TOP - 8, panel.y_label, "start"),
    ]
    for tick in _ticks(low_x, high_x):
        parts.append(_segment(x_at(tick), TOP, x_at(tick), TOP + HIGH, "#ddd"))
        parts.append(_text(x_at(tick), TOP + HIGH + 16, f"{tick:g}", "middle"))
    for tick in _ticks(low_y, high_y):
        parts.append(_segment(left + MARGIN, y_at(tick), left + PANEL, y_at(tick), "#ddd"))
        parts.append(_text(left + MARGIN - 6, y_at(tick) + 4, f"{tick:g}", "end"))
    for line in panel.lines:
        color, dashes = COLORS[line.color % len(COLORS)], DASHES if line.dashed else ""
        corners = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y, _ in line.points)
        parts.append(
            f'<polyline fill="none" stroke="{color}" stroke-width="1.5"{dashes} points="{corners}"/>'
        )
        for x, y, half in line.points:
            parts.append(_segment(x_at(x), y_at(y - half), x_at(x), y_at(y + half), color))
            parts.append(f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="2.5" fill="{color}"/>')
    return "".join(parts)


def _legend(lines: Sequence[Line]) -> str:
    parts: list[str] = []
    for place, line in enumerate(lines):
        x, y = MARGIN + 215 * (place % 4), TOP + HIGH + 52 + 16 * (place // 4)
        parts.append(
            _segment(x, y - 4, x + 24, y - 4, COLORS[line.color % len(COLORS)], DASHES if line.dashed else "")
        )
        parts.append(_text(x + 30, y, line.label, "start"))
    return "".join(parts)


def _part(value: float, low: float, high: float) -> float:
    """How far up the range a value lies, 0 to 1; the ends of error bars stay inside."""
    return math.log(min(max(value, low), high) / low) / math.log(high / low)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    if not values or min(values) <= 0:
        raise ValueError("a chart with logarithmic axes needs points, all of them positive")
    return min(values) / 1.1, max(values) * 1.1


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers inside the range: 1, 2 and 5 times powers of ten, or finer for a narrow range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for parts in ((1, 2, 5), *([n / finer for n in range(finer, 10 * finer)] for finer in (1, 2, 5, 10))):
        ticks = [part * 10.0**ten for ten in decades for part in parts if low <= part * 10.0**ten <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _segment(x0: float, y0: float, x1: float, y1: float, color: str, more: str = "") -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{color}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
