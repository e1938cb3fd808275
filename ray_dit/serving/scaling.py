"""How many replicas a model needs, from the images on their way and waiting.

Knows nothing else of the package: Ray Serve's controller runs it, by value, every fraction of a second.
Delays and bounds are Serve's own settings.
"""

import math
from typing import Any

IMAGES_METRIC = "images"
"""What each replica reports: images on their way and waiting."""


class ImagesPolicy:
    """Autoscaling policy: as many replicas as it takes for ``images_per_replica`` images each."""

    def __init__(self, images_per_replica: int) -> None:
        self.images_per_replica = images_per_replica

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        images = sum(ctx.aggregated_metrics.get(IMAGES_METRIC, {}).values())
        # What waits for a replica at all is not in any replica's report: count it as an image per request.
        waiting = ctx.total_queued_requests or 0
        return max(1, math.ceil((images + waiting) / self.images_per_replica)), {}
