"""Who takes part in the next call of the network: rules over tickets and measured times.

Knows no torch, thread, lock or clock. How much work a ticket is, is known when it comes, and so is when it is
due: ``PATIENCE`` times what it would take alone later. The images of those due first come first, and others
have what room they leave. So a short ticket passes long ones, a long one is passed by no more than its
patience allows, equal ones are served in turn; and images are done sooner on average than if all advanced
together. A call grows only as far as no ticket comes below the 1/N of its own speed that each of N may
expect; see `row_limit`.

Rows are those of the network's call: a guided image takes two.
"""

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ray_dit.serving.engine.tickets import QueueFull, Row, Ticket

PATIENCE = 32
"""A ticket is due after so many times the time it would take alone. With 0 it would be first come, first
served; with ever more, the shortest first and the longest perhaps never."""
ENOUGH = 0.97
"""A call is large enough when it reaches this part of the best throughput measured."""

MAX_RETRY = 60.0
"""Longest time, in seconds, after which a refused ticket is told to come again."""


class StepCurve:
    """Seconds of a step by the rows of its call: measured points, rising, straight lines between them.

    ``padded``: calls are padded to the next of these points, so between two of them it is the later one's.
    """

    def __init__(self, rows: list[int], seconds: list[float], *, padded: bool = False) -> None:
        if not rows or len(rows) != len(seconds) or sorted(set(rows)) != rows:
            raise ValueError("a curve needs rising numbers of rows, and a time for each")
        self.rows, self.padded = rows, padded
        # A larger call measured faster is noise of the clock.
        self._seconds = [max(seconds[: i + 1]) for i in range(len(seconds))]

    def seconds(self, rows: float) -> float:
        """Time of a call of so many rows; past the last point in proportion, before the first as there."""
        i = bisect.bisect_left(self.rows, rows)
        if i == 0:
            return self._seconds[0]
        if i == len(self.rows):
            return self._seconds[-1] * rows / self.rows[-1]
        if self.padded:
            return self._seconds[i]
        low, high = self.rows[i - 1], self.rows[i]
        share = (rows - low) / (high - low)
        return self._seconds[i - 1] + share * (self._seconds[i] - self._seconds[i - 1])

    def best_rows(self, among: Collection[int] | None = None) -> int:
        """The fewest rows measured that reach nearly the best throughput; at least 2, a guided image.

        Only points ``among`` these are looked at; by default all.
        """
        points = [rows for rows in self.rows if among is None or rows in among]
        rates = [rows / max(self.seconds(rows), 1e-9) for rows in points]
        enough = next(rows for rows, rate in zip(points, rates, strict=True) if rate >= ENOUGH * max(rates))
        return max(enough, 2)

    def rows_within(self, seconds: float) -> int:
        """The most rows, up to the last point, whose call takes no longer than this; 1 if none does."""
        low, high = 1, self.rows[-1]
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds(middle) <= seconds else (low, middle - 1)
        return low


def patience(demand: int, num_steps: int, curve: StepCurve, max_step_rows: int) -> float:
    """Seconds after which a ticket of so many rows per step is due."""
    rows = min(demand, max_step_rows)
    return PATIENCE * num_steps * curve.seconds(rows) * demand / rows


def row_limit(demands: Sequence[int], curve: StepCurve, max_step_rows: int) -> int:
    """Most rows of a call: what pays, and what leaves each of N tickets 1/N of the speed it would have alone.

    Alone, a ticket's step takes ``curve.seconds(its rows)``; among N its step may take N times that.
    ``demands`` are the rows each would take, of one ticket at least.
    """
    smallest = min(*demands, max_step_rows)
    fair = curve.rows_within(len(demands) * curve.seconds(smallest))
    return min(max_step_rows, max(fair, smallest, 2))


@dataclass(frozen=True)
class Load:
    """How busy an engine is: images waiting or on their way, tickets, and the most rows a call may have."""

    images: int
    image_steps: int
    """Steps that the images have yet to take."""
    running: int
    queued: int
    max_step_rows: int


class Schedule:
    """The tickets of an engine: who waits, who runs, and the rows of the next call.

    ``slots`` bounds the images on their way, ``max_queued`` the tickets that wait beyond free slots. Whoever
    calls holds the lock and gives the time.
    """

    def __init__(self, curve: StepCurve, *, max_step_rows: int, slots: int, max_queued: int) -> None:
        self.curve, self.max_step_rows = curve, max_step_rows
        self.slots, self.max_queued = slots, max_queued
        self.waiting: list[Ticket] = []
        """Those due first in front, as in ``running``."""
        self.running: list[Ticket] = []
        self.changed = True
        """Something happened since the last choice that may alter it."""
        self._chosen: list[Row] = []
        self._chosen_rows = 0
        self._trial: int | None = None

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self.running or ticket in self.waiting

    @property
    def tickets(self) -> list[Ticket]:
        """All that are here, those that run first."""
        return [*self.running, *self.waiting]

    def enter(self, ticket: Ticket) -> None:
        """Says when it is due, and lets it wait for its turn.

        QueueFull where too many do, or where the work due before it leaves it no chance to meet its deadline.
        """
        # Those for whom there are slots wait for the end of a step only.
        if len(self.waiting) >= self.max_queued + max(self._free_slots(), 0):
            raise QueueFull(self._retry_after())
        ticket.due = ticket.submitted + patience(
            ticket.demand, ticket.num_steps, self.curve, self.max_step_rows
        )
        late = self._lateness(ticket)
        if late > 0:
            raise QueueFull(min(max(late, 1.0), MAX_RETRY))
        bisect.insort(self.waiting, ticket, key=_turn)
        self.changed = True

    def take_ending(self, now: float) -> list[Ticket]:
        """Takes out and returns the tickets that are too late by now, were cancelled or have failed."""
        for ticket in self.tickets:
            if ticket.deadline is not None and now >= ticket.deadline:
                ticket.reason = ticket.reason or "deadline"
        ending = [ticket for ticket in self.tickets if ticket.reason is not None]
        for ticket in ending:
            self.take_out(ticket)
        return ending

    def take_out(self, ticket: Ticket) -> None:
        """It holds no slot, and takes part in no step, from now on."""
        ticket.rows.clear()
        if ticket in self.running:
            self.running.remove(ticket)
        elif ticket in self.waiting:
            self.waiting.remove(ticket)
        self.changed = True

    def next_deadline(self) -> float | None:
        """The first deadline of a ticket that runs."""
        return min((t.deadline for t in self.running if t.deadline is not None), default=None)

    def admit(self) -> None:
        """Lets waiting tickets run, those due first, while there are slots."""
        free = self._free_slots()
        if not self.waiting or free <= 0:
            return
        # A ticket that runs keeps one slot at least (`_free_slots`), so as many may enter as slots are free.
        for _ in range(min(free, len(self.waiting))):
            bisect.insort(self.running, self.waiting.pop(0), key=_turn)
        self.changed = True

    def follow(self, curve: StepCurve, max_step_rows: int) -> None:
        """From now on steps take so long, and calls have at most so many rows."""
        self.curve, self.max_step_rows = curve, max_step_rows
        self.changed = True

    def try_rows(self, rows: int) -> None:
        """The next call alone has so many rows at most, whatever pays: to learn how long it takes.

        Nothing happens where there are not as many.
        """
        if sum(ticket.demand for ticket in self.running if ticket.rows) >= rows:
            self._trial, self.changed = rows, True

    def choose(self) -> list[Row]:
        """The images of the next step: those due first, as many as `row_limit` allows.

        A choice stands until something changes, or guidance sets in or ends for one of them: choosing anew
        costs copies.
        """
        if not self.changed and count_rows(self._chosen) == self._chosen_rows:
            return self._chosen
        active = [ticket for ticket in self.running if ticket.rows]
        room = 0
        if active:
            room = row_limit([ticket.demand for ticket in active], self.curve, self.max_step_rows)
        trial, self._trial = self._trial, None
        self._chosen = self._choose_due(active, trial or room)
        self._chosen_rows = count_rows(self._chosen)
        self.changed = trial is not None
        return self._chosen

    def _choose_due(self, active: Sequence[Ticket], room: int) -> list[Row]:
        """The images of the next call, of no more than so many rows."""
        slots = max(self._free_slots(), 0)
        kept_back = self.slots // 4  # for first images: else few long tickets could hold every slot
        chosen: list[Row] = []
        for ticket in active:
            for place, row in enumerate(ticket.rows):
                if row.cost > room:
                    break
                if not row.begun:
                    first = ticket.resident == 0 and place == 0  # it has a slot kept for it
                    if not first and slots <= kept_back:
                        break
                    slots -= 0 if first else 1
                chosen.append(row)
                room -= row.cost
        return chosen

    def load(self) -> Load:
        """How busy it is now."""
        images = sum(ticket.undelivered for ticket in self.tickets)
        steps = sum(ticket.num_steps - row.step for ticket in self.tickets for row in ticket.rows)
        return Load(images, steps, len(self.running), len(self.waiting), self.max_step_rows)

    def _free_slots(self) -> int:
        """Places for images; a running ticket none of whose images has begun keeps one for itself."""
        return self.slots - sum(max(ticket.resident, 1) for ticket in self.running)

    def _lateness(self, ticket: Ticket) -> float:
        """Seconds by which it will miss its deadline at best, by the work due before it; else 0 or less.

        One that would be too late even alone is let in: the step times measured may be too long, and coming
        again would not help it.
        """
        if ticket.work.seconds is None:
            return 0.0
        alone = patience(ticket.demand, ticket.num_steps, self.curve, self.max_step_rows) / PATIENCE
        if alone > ticket.work.seconds:
            return 0.0
        before = [other for other in self.tickets if _turn(other) < _turn(ticket)]
        row_steps = sum(other.row_steps for other in [*before, ticket])
        # No call does more rows per second than this: the most that pay, short of it by ENOUGH.
        fastest = ENOUGH * self.curve.seconds(self.max_step_rows) / self.max_step_rows
        return row_steps * fastest - ticket.work.seconds

    def _retry_after(self) -> float:
        """About how many seconds the network needs for a ticket's share of what is here."""
        row_steps = sum(ticket.demand * ticket.num_steps for ticket in self.tickets)
        rows = self.max_step_rows
        seconds = row_steps / rows * self.curve.seconds(rows)
        return min(max(seconds / max(len(self.tickets), 1) * 2, 1.0), MAX_RETRY)


def _turn(ticket: Ticket) -> tuple[float, int]:
    return ticket.due, ticket.number


def count_rows(images: Sequence[Row]) -> int:
    """Rows of the network's call that the next step of these images takes."""
    return sum(row.cost for row in images)
