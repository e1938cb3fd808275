"""The axes and the text of a chart."""

import pytest

from benchmarks.chart import Line, Panel, chart


def test_a_chart_is_logarithmic_and_escaped() -> None:
    line = Line("<a>", 0, True, [(1.0, 1.0, 0.0), (10.0, 10.0, 9.99), (100.0, 100.0, 0.0)])
    svg = chart([Panel("x", "y", [line])])
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, pair.split(","))) for pair in svg.split('points="')[1].split('"')[0].split()
    )
    assert (x1 - x0, y0 - y1) == pytest.approx((x2 - x1, y1 - y2), abs=0.2)
    assert x0 < x2
    assert y2 < y0
    assert "&lt;a&gt;" in svg
    assert "<a>" not in svg
    with pytest.raises(ValueError, match="positive"):
        chart([Panel("x", "y", [Line("a", 0, False, [(1.0, 0.0, 0.0)])])])


@pytest.mark.parametrize(("low", "high"), [(5.0, 500.0), (12.0, 16.0), (1.0, 1.2)])
def test_an_axis_has_a_few_round_numbers(low: float, high: float) -> None:
    svg = chart([Panel("x", "y", [Line("a", 0, False, [(1.0, low, 0.0), (10.0, high, 0.0)])])])
    numbers = [float(text.split("<")[0]) for text in svg.split('text-anchor="end">')[1:] if text[0].isdigit()]
    assert 3 <= len(numbers) <= 12
    assert all(low / 1.1 <= number <= high * 1.1 for number in numbers)
