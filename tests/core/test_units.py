"""Sizes and times in words."""

import pytest

from ray_dit.core.units import bytes_text, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (245, "4 min 05 s"), (11_520, "3 h 12 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (12_345, "12.3 kB"), (1_500_000_000_000, "1.5 TB")]
)
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text
