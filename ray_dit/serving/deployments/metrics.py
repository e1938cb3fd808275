"""Counters for Prometheus by way of Ray; every replica has its own, told apart by Ray's tags.

Ray puts ``ray_`` in front of every name: these are `ray_dit_...` in Prometheus.
"""

from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from ray_dit.serving.engine.policy import Load
from ray_dit.serving.engine.tickets import Observer

SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
STEP_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256]


class EngineMetrics(Observer):
    """What an engine does, as metrics tagged with the model's name."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self._steps = _histogram("dit_step_rows", "Rows of the network per step.", ROWS, ("model",))
        self._step_seconds = _histogram("dit_step_seconds", "Time of a step.", STEP_SECONDS, ("model",))
        self._busy = Counter(
            "dit_busy_seconds_total",
            "Time in which steps ran: its rate is the share of the device.",
            ("model",),
        )
        self._decode = Counter("dit_decode_seconds_total", "Time in which the VAE decoded.", ("model",))
        self._first = _histogram(
            "dit_first_image_seconds", "Submission to first preview or image.", SECONDS, ("model",)
        )
        self._requests = _histogram(
            "dit_engine_request_seconds", "Submission to end.", SECONDS, ("model", "outcome")
        )
        self._cancels = Counter("dit_cancelled_total", "Requests cancelled.", ("model",))
        self._images = Gauge("dit_images", "Images on their way and waiting.", ("model",))
        self._image_steps = Gauge(
            "dit_image_steps", "Steps that images on their way and waiting have yet to take.", ("model",)
        )
        self._queued = Gauge("dit_queued_requests", "Requests waiting for a slot.", ("model",))

    def stepped(self, rows: int, seconds: float) -> None:
        self._steps.observe(rows, self._tags)
        self._step_seconds.observe(seconds, self._tags)
        self._busy.inc(max(seconds, 1e-9), self._tags)

    def decoded(self, images: int, seconds: float) -> None:
        self._decode.inc(max(seconds, 1e-9), self._tags)

    def previewed(self, seconds: float) -> None:
        self._first.observe(seconds, self._tags)

    def ended(self, outcome: str, seconds: float) -> None:
        self._requests.observe(seconds, self._tags | {"outcome": outcome})
        if outcome == "cancelled":
            self._cancels.inc(1, self._tags)

    def gauge(self, load: Load) -> None:
        """Sets the gauges; called now and then."""
        self._images.set(load.images, self._tags)
        self._image_steps.set(load.image_steps, self._tags)
        self._queued.set(load.queued, self._tags)


class RequestMetrics:
    """HTTP requests by route and status."""

    def __init__(self) -> None:
        keys = ("path", "status")
        self._requests = Counter("dit_requests_total", "HTTP requests.", keys)
        self._seconds = _histogram(
            "dit_request_seconds", "HTTP request to the end of its answer.", SECONDS, keys
        )

    def __call__(self, path: str, status: int, seconds: float) -> None:
        tags = {"path": path, "status": str(status)}
        self._requests.inc(1, tags)
        self._seconds.observe(seconds, tags)


def _histogram(name: str, text: str, boundaries: Sequence[float], keys: tuple[str, ...]) -> Histogram:
    return Histogram(name, text, list(boundaries), keys)
