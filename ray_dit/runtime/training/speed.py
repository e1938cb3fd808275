"""How fast a training is, from what the first worker's clock said; nothing of it gets into a result."""

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

WINDOW_SECONDS = 30.0
"""The time that a speed is the mean of, about; a checkpoint within it should not be all that is seen."""


@dataclass(frozen=True)
class Work:
    """What a step takes, and what the workers could do."""

    samples: int
    """Samples per step, of all workers."""
    flops: float
    """Floating-point operations per sample, forward and backward."""
    peak: float | None = None
    """Operations per second that all workers' devices can do at most; None where it is not known."""


class Lap(NamedTuple):
    """Where a training was at one moment of the first worker's clock."""

    steps: int
    """Steps done, those before this start too."""
    seconds: float
    """Since this start."""
    waited: float
    """Seconds of those that the loop has waited for samples."""
    stalled: float
    """Seconds of those that it has waited for checkpoints."""


@dataclass(frozen=True)
class Speed:
    """Between two laps."""

    step: int
    """Steps done at the later one."""
    images_per_second: float
    """Of all workers."""
    tflops_per_second: float
    mfu: float | None
    """Model FLOPs utilisation: the share of the devices' peak that these operations are."""
    data_wait: float
    """Share of the time that the loop has waited for samples."""
    checkpoint_stall: float
    """Share of the time that it has waited for checkpoints."""
    seconds_left: float

    def __str__(self) -> str:
        rate = f"{self.images_per_second:.4g} images/s, {self.tflops_per_second:.3g} TFLOP/s"
        mfu = "" if self.mfu is None else f", MFU {self.mfu:.1%}"
        return (
            f"{rate}{mfu}, waits {self.data_wait:.1%} for data, {self.checkpoint_stall:.1%} for checkpoints"
        )

    def facts(self) -> dict[str, Any]:
        """The fields for the run's record, rounded to what a clock can tell."""
        return {
            name: value if value is None or isinstance(value, int) else float(f"{value:.4g}")
            for name, value in asdict(self).items()
        }


def speed_between(work: Work, begin: Lap, end: Lap, steps: int) -> Speed | None:
    """The speed from one lap to a later one of a training of so many steps; None where no time has passed."""
    seconds, done = end.seconds - begin.seconds, end.steps - begin.steps
    if seconds <= 0 or done <= 0:
        return None
    rate = done * work.samples / seconds
    flops = rate * work.flops
    return Speed(
        step=end.steps,
        images_per_second=rate,
        tflops_per_second=flops / 1e12,
        mfu=flops / work.peak if work.peak else None,
        data_wait=(end.waited - begin.waited) / seconds,
        checkpoint_stall=(end.stalled - begin.stalled) / seconds,
        seconds_left=(steps - end.steps) / done * seconds,
    )


@dataclass
class Speedometer:
    """Keeps the laps of one start of the workers; begins anew where a lap is of another."""

    steps: int
    """Of the whole training."""
    window: float = WINDOW_SECONDS
    _laps: deque[Lap] = field(default_factory=lambda: deque[Lap]())
    _first: Lap | None = None

    def read(self, work: Work, lap: Lap) -> Speed | None:
        """The speed of about the last ``window`` seconds; None until a step was seen to end after another."""
        if self._laps and (lap.steps < self._laps[-1].steps or lap.seconds < self._laps[-1].seconds):
            self._laps.clear()
            self._first = None
        if not self._laps or lap.steps > self._laps[-1].steps:
            self._laps.append(lap)
        while len(self._laps) > 2 and lap.seconds - self._laps[1].seconds >= self.window:
            self._laps.popleft()
        # from the first lap with a step on: compiling and the first step say nothing of the others
        self._first = self._first or lap
        return speed_between(work, self._laps[0], self._laps[-1], self.steps)

    def overall(self, work: Work) -> Speed | None:
        """The speed since the first lap."""
        return speed_between(work, self._first, self._laps[-1], self.steps) if self._first else None
