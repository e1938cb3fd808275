"""What making shards took: how long actors were there, how much of that they computed, and what it cost."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ray_dit.core.units import duration


@dataclass(frozen=True)
class ActorTime:
    """Seconds of the process of an actor, or of several together."""

    there: float = 0.0
    """Since it began to load its model."""
    computing: float = 0.0
    """Of these, in ``compute``: the accelerator was in use."""

    def __add__(self, other: "ActorTime") -> "ActorTime":
        return ActorTime(self.there + other.there, self.computing + other.computing)

    @property
    def share(self) -> float:
        """Of the time, that of computing: 0 to 1."""
        return self.computing / self.there if self.there else 0.0

    @property
    def hours(self) -> float:
        """Actor-hours."""
        return self.there / 3600


NO_TIME = ActorTime()


class Stopwatch:
    """An actor's own: one thread computes, and any may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begun = clock, clock()
        self._computed = 0.0
        self._since: float | None = None

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """While it lasts, the accelerator is in use."""
        self._since = begun = self._clock()
        try:
            yield
        finally:
            self._since = None
            self._computed += self._clock() - begun

    def read(self) -> ActorTime:
        """The time up to now, with what is being computed."""
        since, now = self._since, self._clock()
        under_way = 0.0 if since is None else now - since
        return ActorTime(now - self._begun, self._computed + under_way)


@dataclass(frozen=True)
class Account:
    """What a run has made and what that took."""

    made: int
    unit: str
    """What is counted, in the plural."""
    seconds: float
    """From the call until the last was made, with the start of the actors."""
    time: ActorTime
    """Of all actors."""
    price: float | None = None
    """Of an actor for an hour."""

    @property
    def per_second(self) -> float:
        """How many were made, with all actors together."""
        return self.made / self.seconds if self.seconds else 0.0

    @property
    def cost_per_1000(self) -> float | None:
        """In the unit of the price; None without one, and where nothing was made."""
        return (
            None if self.price is None or not self.made else 1000 * self.time.hours * self.price / self.made
        )

    def facts(self) -> dict[str, float]:
        """For the run's record."""
        cost = self.cost_per_1000
        return {
            f"{self.unit}_per_second": round(self.per_second, 3),
            "actor_hours": round(self.time.hours, 6),
            "computing_share": round(self.time.share, 4),
            **(
                {} if cost is None else {"price_per_hour": self.price or 0.0, "cost_per_1000": round(cost, 6)}
            ),
        }

    def __str__(self) -> str:
        cost = self.cost_per_1000
        return (
            f"{self.made:,} {self.unit} in {duration(self.seconds)}, {_short(self.per_second)}/s, "
            f"{_short(self.time.hours)} actor-hours, {self.time.share:.0%} of them computing"
            + ("" if cost is None else f", at {_short(cost)} per 1,000 {self.unit}")
        )


def _short(value: float) -> str:
    """Three digits, of large numbers all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
