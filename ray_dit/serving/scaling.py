"""How many replicas a model needs, from the steps that its images have yet to take.

Knows nothing else of the package: Ray Serve's controller runs it, by value, every fraction of a second.
Delays and bounds are Serve's own settings.
"""

import math
from typing import Any

STEPS_METRIC = "image_steps"
"""What each replica reports: the steps that its images, on their way and waiting, have yet to take."""
UNKNOWN = 50
"""Steps for which a request counts that has no replica yet, since nobody has reported it."""


class StepsPolicy:
    """Autoscaling policy: as many replicas as it takes for ``image_steps_per_replica`` steps each."""

    def __init__(self, image_steps_per_replica: int) -> None:
        self.image_steps_per_replica = image_steps_per_replica

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        steps = sum(ctx.aggregated_metrics.get(STEPS_METRIC, {}).values())
        waiting = UNKNOWN * (ctx.total_queued_requests or 0)
        return max(1, math.ceil((steps + waiting) / self.image_steps_per_replica)), {}
