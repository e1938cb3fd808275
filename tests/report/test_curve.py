"""Curves show what they are given."""

import re

import pytest

from ray_dit.report.curve import HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve, thinned


def line(svg: str) -> list[tuple[float, float]]:
    points = re.search(r'points="(.*?)"', svg)
    assert points
    return [tuple(map(float, pair.split(","))) for pair in points[1].split()]  # type: ignore[misc]


def test_the_line_runs_from_left_to_right_and_falls_with_the_loss():
    (x0, y0), (x1, y1), (x2, y2) = line(curve([(0, 1.0), (50, 0.5), (100, 0.01)], "step", "loss"))
    assert (x0, x2) == (LEFT, WIDTH - RIGHT)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert TOP <= y0 < y1 < y2 <= HEIGHT


def test_a_wide_range_is_logarithmic():
    _, (_, middle), (_, low) = line(curve([(0, 1.0), (1, 0.1), (2, 0.01)], "step", "loss"))
    first = line(curve([(0, 1.0), (1, 0.1), (2, 0.01)], "step", "loss"))[0][1]
    assert middle - first == pytest.approx(low - middle, abs=0.2)


def test_a_narrow_range_is_linear_and_negative_values_are_fine():
    points = line(curve([(0, -1.0), (1, 0.0), (2, 1.0)], "step", "loss"))
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.2)


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(0.0, 3.0), (9.0, 3.0)]])
def test_a_point_or_a_flat_line_is_drawn(points: list[tuple[float, float]]):
    assert len(line(curve(points, "x", "y"))) == len(points)


def test_long_logs_are_averaged():
    points = thinned([(float(step), float(step % 2)) for step in range(1000)], most=100)
    assert len(points) == 100
    assert points[0] == (4.5, 0.5)


def test_labels_are_escaped():
    assert "<b>" not in curve([(0, 1)], "<b>", "<b>")


@pytest.mark.parametrize("points", [[], [(0.0, float("nan"))]])
def test_nothing_to_draw_is_refused(points: list[tuple[float, float]]):
    with pytest.raises(ValueError, match="finite"):
        curve(points, "x", "y")
