"""Rows are counted, and a simulated accelerator takes the time it is given."""

import time
from pathlib import Path

import torch

from benchmarks.serving.models import Counted, bulk_rate, counted_pipeline, random_model

X = torch.ones(4, 2, 1, 1)


def seconds_of(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - started


def test_without_times_the_network_is_called() -> None:
    counted = Counted(lambda x, t, y: x + t + y, None, None)
    assert torch.equal(counted(X, 1, 2), X + 3)
    assert counted.rows == 4


def test_a_simulated_call_runs_behind_the_one_before() -> None:
    counted = Counted(None, a=0.1, b=0.025)
    started = time.perf_counter()
    assert seconds_of(lambda: counted(X, 0, 0)) < 0.2  # issued
    counted(X, 0, 0)
    assert 0.2 <= time.perf_counter() - started < 0.4  # waited for the first and not for itself
    counted.finish()
    assert time.perf_counter() - started >= 0.4
    assert counted.rows == 8


def test_not_ahead_each_call_is_waited_for() -> None:
    counted = Counted(None, a=0.1, b=0.025)
    counted.ahead = False
    assert seconds_of(lambda: counted(X, 0, 0)) >= 0.2
    assert counted(X, 0, 0).shape == (4, 4, 1, 1)


def test_bulk_generation_is_measured_in_rows_of_the_network(tmp_path: Path) -> None:
    uri = random_model(tmp_path / "model", "small")
    pipeline, counted = counted_pipeline(uri, a=0.005, b=0.0, threads=1, precision="float32")
    rate = bulk_rate(pipeline, counted, images=3, seconds=0.01)
    assert counted.rows == 3 * 2 * 20  # guided
    assert 0 < rate <= 3 * 2 / 0.005
