"""Progress for people: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

SECONDS_BETWEEN_LINES = 15.0
SECONDS_FOR_A_RATE = 1.0
"""Work that was done when it was first looked at has no rate."""


class Advance(Protocol):
    """What is called with the absolute count done and a short note."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Shows how far ``what`` is.

    The value yielded is called with the absolute count done and a short note.
    """
    if sys.stderr.isatty():
        with _bar(what, total, unit, done) as advance:
            yield advance
    else:
        yield _Lines(what, total, unit, done)


@contextlib.contextmanager
def _bar(what: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="", note="")

        def advance(done: int, note: str = "") -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:.1f}/s" if speed else ""
            bar.update(task, completed=done, rate=rate, note=note)

        yield advance


class _Lines:
    """A line when a while has passed, and one at the end."""

    def __init__(self, what: str, total: int, unit: str, done: int) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._last = time.monotonic()
        self._begin: float | None = (
            None  # of the rate: when something was first done, so that starting up is left out
        )
        self._begin_done = self._shown = done

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self._begin is None and done > self._begin_done:
            self._begin, self._begin_done = now, done
        if done == self._shown or (done < self._total and now - self._last < SECONDS_BETWEEN_LINES):
            return
        self._last, self._shown = now, done
        seconds = now - (self._begin or now)
        rate = (done - self._begin_done) / seconds if seconds >= SECONDS_FOR_A_RATE else 0.0
        left = f", {(self._total - done) / rate:.0f} s left" if rate > 0 and done < self._total else ""
        speed = f", {rate:.1f}/s" if rate > 0 else ""
        note = f", {note}" if note else ""
        print(
            f"{self._what}: {done}/{self._total} {self._unit}{speed}{left}{note}",
            file=sys.stderr,
            flush=True,
        )
