"""What a plan is computed from; whole plans of stages are in tests/stages/test_plans.py."""

from typing import Any

import pytest

from ray_dit.runtime import planning
from ray_dit.runtime.planning import Known, Plan


@pytest.mark.parametrize(
    ("sizes", "done", "workers", "longest"),
    [
        ([10, 10, 10], set[int](), 2, 20),
        ([10, 10, 4], set[int](), 2, 14),
        ([10, 10, 4], {0}, 2, 10),
        ([10], {0}, 2, 0),
    ],
)
def test_the_busiest_worker_decides(sizes: list[int], done: set[int], workers: int, longest: int) -> None:
    assert planning.makespan(sizes, done, workers) == longest


def test_the_cost_is_that_of_all_workers() -> None:
    plan = Plan(
        stage="generate", output="there", counts={}, done={}, network_evaluations=0, bytes_in=0, bytes_out=0,
        workers=4, seconds={"work": 1800.0}, total_seconds=1800.0, basis="assumed",
    )  # fmt: skip
    assert plan.priced(3.0).cost == pytest.approx(4 * 0.5 * 3.0)
    assert plan.priced(None) == plan


def test_what_is_assumed_is_said() -> None:
    common: dict[str, Any] = {
        "stage": "encode", "output": "there", "counts": {"images": 10}, "done": {"images": 5},
        "network_evaluations": 20, "bytes_in": 1, "workers": 2,
    }  # fmt: skip
    known = Known(
        network_evaluations=20,
        bytes_in=1,
        flops=2.5e13 * 8,
        bytes_out=1e6,
        left_out="decoding is not counted",
    )
    plan = planning.assumed(common, known, share=0.5, workers=2)
    assert plan.total_seconds == pytest.approx(2.0), "half of 8 s on 2 workers"
    assert plan.bytes_out == 1_000_000
    assert all(
        words in plan.basis for words in ("GPUs are not here", "25 TFLOP/s", "decoding is not counted")
    )
