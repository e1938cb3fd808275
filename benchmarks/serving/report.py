"""The results beside their goals, as a table and as a drawing; measures nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def with_checks(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the figures there are goals for, in ``checks``."""
    bulk, saturation, base_saturation = (
        float(np.median(result["rows_per_second"][name])) for name in ("bulk", "saturation", "baseline")
    )
    base_short = min(row["short_p95"] for row in result["baseline"]["tried"])
    half, most = _at(result["loads"], 0.5), _at(result["loads"], 0.8)
    checks = {
        "p95 at 80 % of saturation over the ideal's (wanted: at most 1.15)": most["p95_over_ideal"],
        "saturation throughput over bulk (wanted: at least 0.95)": saturation / bulk,
        "saturation throughput over @serve.batch's (wanted: above 1)": saturation / base_saturation,
        "@serve.batch's p95 of short requests at half load over ours (wanted: at least 5)": base_short
        / half["short_p95"],
        "1 image beside 10 of 250 steps over alone (wanted: at most 3)": result["short_beside_long"]
        / result["short_alone"],
    }
    return result | {"checks": checks}


def _at(loads: Sequence[dict[str, Any]], load: float) -> dict[str, Any]:
    return min(loads, key=lambda row: abs(row["load"] - load))


def table(result: dict[str, Any]) -> str:
    """The results as Markdown: a row per load."""
    lines = [
        "| load | requests | p50 s | p95 s | ideal p95 s | p95 / ideal | ... by the profile | added ms "
        "(median) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["loads"]:
        lines.append(
            f"| {row['load']:.0%} | {row['requests']} | {row['p50']:.3f} | {row['p95']:.3f} | "
            f"{row['ideal_p95']:.3f} | {row['p95_over_ideal']:.2f} | {row['p95_over_ideal_by_profile']:.2f} "
            f"| {row['added_ms_median']:.0f} |"
        )
    lines += ["", "| check | measured |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in result["checks"].items()]
    return "\n".join(lines)


def drawing(result: dict[str, Any]) -> str:
    """Latency against load, as SVG."""
    loads, width, height = result["loads"], 640, 380
    left, right, top, bottom = 60, width - 20, 50, height - 50
    most = max(row[key] for row in loads for key in ("p95", "ideal_p95"))
    tick = next(
        unit * power
        for power in (10.0**k for k in range(-3, 6))
        for unit in (1, 2, 5)
        if unit * power * 5 >= most
    )

    def place(load: float, seconds: float) -> tuple[float, float]:
        return left + load * (right - left), bottom - seconds / (5 * tick) * (bottom - top)

    def line(key: str, colour: str, dash: str = "") -> str:
        points = " ".join("{:.1f},{:.1f}".format(*place(row["load"], row[key])) for row in loads)
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        return f'<polyline points="{points}" fill="none" {stroke}/>'

    def text(x: float, y: float, said: str, colour: str = "#444", anchor: str = "middle") -> str:
        place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
        return f'<text {place} fill="{colour}" font-family="sans-serif" font-size="12">{said}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"><rect width="100%" '
        'height="100%" fill="#fff"/>'
    ]
    for k in range(6):
        x, y = place(k / 5, k * tick)
        parts += [
            f'<path d="M{left} {y:.1f}H{right}" stroke="#e5e5e5"/>',
            text(left - 6, y + 4, f"{k * tick:g} s", anchor="end"),
            text(x, bottom + 18, f"{k * 20} %"),
        ]
    for key, colour in (("p95", "#2f5bd0"), ("p50", "#2a9d6f")):
        parts += [line(key, colour), line(f"ideal_{key}", colour, "5 4")]
    parts += [
        text(left, 24, "95th percentile of latency", "#2f5bd0", "start"),
        text(left + 180, 24, "median", "#2a9d6f", "start"),
        text(left + 250, 24, "dashed: the ideal, which has no overhead", anchor="start"),
        text((left + right) / 2, height - 10, "load, of saturation"),
        "</svg>",
    ]
    return "".join(parts)
