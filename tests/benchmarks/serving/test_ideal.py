"""The ideal's latencies where they can be told by hand."""

from typing import Any

import pytest

from benchmarks.serving.ideal import ideal
from benchmarks.serving.load import Arrival
from ray_dit.serving.engine.policy import StepCurve

CURVE = StepCurve([2, 128], [0.1, 0.1])
"""A step takes a tenth of a second, whatever its rows."""


def latencies(*arrivals: Arrival, max_rows: int = 128) -> Any:
    return pytest.approx(ideal(arrivals, CURVE, max_rows))


def test_alone_a_request_takes_its_steps() -> None:
    assert latencies(Arrival(3.0, 1, 10)) == [1.0]
    assert latencies(Arrival(3.0, 4, 50)) == [5.0]


def test_what_has_room_shares_a_call_from_the_end_of_the_step_it_arrives_in() -> None:
    assert latencies(Arrival(0.0, 1, 10), Arrival(0.0, 4, 10)) == [1.0, 1.0]
    assert latencies(Arrival(0.0, 1, 10), Arrival(0.05, 1, 10)) == [1.0, 1.05]


def test_images_without_room_wait() -> None:
    assert latencies(Arrival(0.0, 3, 10), max_rows=2) == [3.0]
    assert latencies(Arrival(0.0, 1, 10), Arrival(0.01, 1, 10), max_rows=2) == [1.0, 1.99]


def test_a_short_request_passes_a_long_one() -> None:
    assert latencies(Arrival(0.0, 1, 50), Arrival(0.0, 1, 10), max_rows=2) == [6.0, 1.0]


def test_a_server_waits_for_what_has_not_arrived() -> None:
    assert latencies(Arrival(0.0, 1, 10), Arrival(20.0, 1, 10)) == [1.0, 1.0]
