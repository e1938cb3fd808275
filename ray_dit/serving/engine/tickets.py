"""What goes into the engine and what comes out: work, its ticket with a row per image, events.

Knows no torch, no lock. A request of HTTP becomes one `Work`, and ``Engine.submit`` gives a `Ticket` for it,
which lives until its last event. Each image of it is a `Row`: one row of the batch that is denoised.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ray_dit.config import SamplerConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a ticket is for: one image per label; image i is a function of (seed, i, its label, sampler)."""

    labels: tuple[int, ...]
    sampler: SamplerConfig
    seed: int
    previews: int = 0
    """Previews per image, spread over its steps; one that is out of date before it is decoded is left out."""
    seconds: float | None = None
    """Deadline, from submission."""


@dataclass(frozen=True)
class Preview:
    """The image as predicted after ``step`` of its steps: pixels uint8 [height, width, 3]."""

    index: int
    step: int
    pixels: np.ndarray


@dataclass(frozen=True)
class FinalImage:
    """A finished image: pixels uint8 [height, width, 3]."""

    index: int
    pixels: np.ndarray


Reason = Literal["deadline", "cancelled", "closed", "internal"]


@dataclass(frozen=True)
class Failed:
    """The ticket ends without its remaining images."""

    reason: Reason


@dataclass(frozen=True)
class Done:
    """All images of the ticket are out; seconds since its submission, and of these before its first step."""

    seconds: float
    queued_seconds: float


Event = Preview | FinalImage | Failed | Done


class QueueFull(Exception):
    """No place for one more ticket; ``retry_after`` is the estimated time, in seconds, until there is one."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Closed(Exception):
    """The engine takes no more tickets: it is shutting down."""


class Observer:
    """What happens, for metrics: override what you count. Called on the engine's threads; must not block."""

    def stepped(self, rows: int, seconds: float) -> None:
        """A call of the network with so many rows took so long."""

    def decoded(self, images: int, seconds: float) -> None:
        """So many images were decoded at once."""

    def previewed(self, seconds: float) -> None:
        """A ticket's first preview, or image, was out so long after its submission."""

    def ended(self, outcome: str, seconds: float) -> None:
        """A ticket ended: ``done`` or the reason of its failure."""


class Ticket:
    """Work in an engine, from its submission to its last event.

    ``table`` is the number of its sampler in the engine's bank; ``guided`` says for each of its steps whether
    an image takes two rows of the network's call there, its own and the unconditional one, or one.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        work: Work,
        *,
        table: int,
        guided: Sequence[bool],
        on_event: Callable[[Event], None],
        on_cancel: "Callable[[Ticket], None]",
        observer: Observer,
    ) -> None:
        self.work, self.table, self.guided = work, table, guided
        self._width = 2 if any(guided) else 1
        costs = [2 if one else 1 for one in guided]
        self._rows_left = [*itertools.accumulate(reversed(costs), initial=0)][::-1]
        """Rows that an image has yet to take, by the steps it has done."""
        self.number = next(Ticket._numbers)
        self.submitted = time.monotonic()
        self.deadline = None if work.seconds is None else self.submitted + work.seconds
        self.due = math.inf
        """When it should be done, on the clock of ``submitted``; the schedule sets it."""
        self.preview_steps = preview_steps(len(guided), work.previews)
        self.rows = [Row(self, index) for index in range(len(work.labels))]
        """Its images that still have steps to take."""
        self.undelivered = len(self.rows)
        self.begun = 0
        self.reason: Reason | None = None
        """Why it is to end before its time."""
        self.queued_seconds: float | None = None
        self.ended = False
        self._on_event, self._on_cancel, self._observer = on_event, on_cancel, observer
        self._first_out = False

    @property
    def num_steps(self) -> int:
        """Denoising steps of each of its images."""
        return len(self.guided)

    @property
    def demand(self) -> int:
        """Rows of the network's call that all its images would take at once."""
        return max(len(self.rows), 1) * self._width

    @property
    def row_steps(self) -> int:
        """Rows of calls that its images have yet to take, over all their steps."""
        return sum(self._rows_left[row.step] for row in self.rows)

    @property
    def resident(self) -> int:
        """Its images that hold a slot: begun, and not out yet."""
        return self.begun - (len(self.work.labels) - self.undelivered)

    def age(self) -> float:
        """Seconds since its submission."""
        return time.monotonic() - self.submitted

    def cancel(self) -> None:
        """End it with the step that runs now; nothing happens if it has ended."""
        self._on_cancel(self)

    def begin(self, row: "Row") -> None:
        """An image of it takes part in its first step."""
        row.begun = True
        self.begun += 1
        if self.queued_seconds is None:
            self.queued_seconds = self.age()

    def tell(self, event: Event) -> None:
        """Hand an event on."""
        if self.ended:
            return
        if not self._first_out and isinstance(event, Preview | FinalImage):
            self._first_out = True
            self._observer.previewed(self.age())
        try:
            self._on_event(event)
        except Exception:  # the receiver's own affair: others' images go on
            logger.exception("the receiver of an event failed")

    def finish(self, event: Done | Failed) -> None:
        """Hand the last event on, once."""
        if self.ended:
            return
        self.tell(event)
        self.ended = True
        self._observer.ended("done" if isinstance(event, Done) else event.reason, self.age())


@dataclass(eq=False, slots=True)
class Row:
    """One image on its way: a row of the batch when it takes part in a step."""

    ticket: Ticket
    index: int
    """Its place in the ticket: with the seed, what decides the image."""
    step: int = 0
    """Steps done."""
    begun: bool = False
    parked: Any = None
    """The batch's: the image's state while it does not take part."""

    @property
    def cost(self) -> int:
        """Rows of the network's call that its next step takes: 2 where guidance acts, else 1."""
        return 2 if self.ticket.guided[self.step] else 1


def preview_steps(num_steps: int, previews: int) -> frozenset[int]:
    """After which steps, counted from 1, previews are made: evenly spread, none after the last."""
    wanted = (round(num_steps * k / (previews + 1)) for k in range(1, previews + 1))
    return frozenset(step for step in wanted if 0 < step < num_steps)
