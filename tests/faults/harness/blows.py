"""Signals at counted events of a job: the n-th object that it writes to S3; knows no Ray.

Whom a blow strikes is found when its event comes: the process that sent the request, the command, a raylet,
or any process of the cluster that works for it. A blow whose victim is not there waits for the next event.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

from tests.support.killer import process_at
from tests.support.proxy import Seen

Victim = Literal["writer", "driver", "raylet", "worker"]
QUIET_SECONDS = 2.0
"""A stopped process is woken when nothing has been written for so long, or when the manifest is."""


@dataclass(frozen=True)
class Blow:
    """A signal to a victim at the ``at``-th PUT (from 1), before or after the service has done it."""

    at: int
    after: bool
    victim: Victim
    number: signal.Signals
    key: str = ""
    """Only PUTs of keys that begin with it are counted; by default those of all."""

    def __str__(self) -> str:
        return f"{self.number.name} {self.victim} {'after' if self.after else 'before'} PUT {self.at}"


def draw_blows(chance: random.Random, events: int, *, most: int = 4) -> tuple[Blow, ...]:
    """Two to ``most`` blows at some of the ``events`` events; one raylet at most, which is dear.

    The last event ends the job, and towards the end only the driver still writes: then there may be nobody to
    strike any more.
    """
    drawn: list[Blow] = []
    for at in sorted(chance.sample(range(1, events), chance.randint(2, most))):
        victims: list[Victim] = ["writer", "driver", "raylet", "worker"]
        victim = chance.choices(victims, [5, 3, 1, 2])[0]
        if victim == "raylet" and any(blow.victim == "raylet" for blow in drawn):
            victim = "writer"
        if victim == "worker" and at > events // 2:
            victim = "driver"
        number = chance.choices([signal.SIGKILL, signal.SIGSTOP], [3, 1])[0]
        drawn.append(Blow(at, chance.random() < 0.5, victim, number))
    return tuple(drawn)


@dataclass
class Dealer:
    """A proxy's watcher: deals the blows of one job as its objects, at ``target``, are written.

    Records of runs and trials of the target are no events: how many there are is chance.
    """

    target: str
    """Path of the job's folder in the proxy's requests: ``/bucket/prefix/``."""
    blows: Sequence[Blow]
    victims: Callable[[Victim], Sequence[int]]
    """Processes that can be struck, of every kind but the writer."""
    hits: Counter[str] = field(default_factory=Counter)
    left: list[Blow] = field(init=False)
    asleep: list[int] = field(default_factory=list)
    heard: float = field(default_factory=time.monotonic)
    finished: bool = False
    """Whether the manifest has been written."""

    def __post_init__(self) -> None:
        self.left = list(self.blows)
        self._counts = Counter[Blow]()

    def __call__(self, seen: Seen) -> None:
        path = unquote(seen.target.partition("?")[0])
        if seen.method != "PUT" or not path.startswith(self.target):
            return
        self.heard = time.monotonic()
        key = path.removeprefix(self.target)
        if key.startswith("_runs/") or "/_runs/" in key or key.startswith("_check/") or "/_check/" in key:
            return
        for blow in [blow for blow in self.left if blow.after == seen.forwarded and key.startswith(blow.key)]:
            self._counts[blow] += 1
            if self._counts[blow] >= blow.at and self._deal(blow, seen):
                self.left.remove(blow)
        if key == "manifest.json" and seen.forwarded:
            self.finished = True

    def _deal(self, blow: Blow, seen: Seen) -> bool:
        if blow.victim == "writer":
            pid = process_at(seen.port)
            pids = [pid] if pid else []
        else:
            pids = self.victims(blow.victim)
        for pid in sorted(pids, key=lambda pid: (blow.at * 7919 + pid) % 97):
            if _send(pid, blow.number):
                self.hits[f"{blow.number.name} {blow.victim}"] += 1
                if blow.number == signal.SIGSTOP:
                    self.asleep.append(pid)
                return True
        return False

    def wake(self, *, now: bool = False) -> None:
        """Wakes stopped processes once their time has come."""
        if now or self.finished or time.monotonic() - self.heard > QUIET_SECONDS:
            while self.asleep:
                _send(self.asleep.pop(), signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
