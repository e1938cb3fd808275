"""How many replicas the steps ask for."""

from types import SimpleNamespace

import pytest

from ray_dit.serving.scaling import STEPS_METRIC, UNKNOWN, StepsPolicy


@pytest.mark.parametrize(
    ("steps", "queued", "replicas"),
    [
        ([0], 0, 1),
        ([1000], 0, 1),
        ([1001], 0, 2),
        ([3000, 3000], 0, 6),
        ([500], 2000 // UNKNOWN, 3),
        ([], 0, 1),
        ([500], None, 1),  # where Serve does not know
    ],
)
def test_replicas_follow_the_steps_that_are_to_be_done(steps, queued, replicas):
    context = SimpleNamespace(
        aggregated_metrics={STEPS_METRIC: dict(enumerate(steps))}, total_queued_requests=queued
    )
    assert StepsPolicy(image_steps_per_replica=1000)(context)[0] == replicas
