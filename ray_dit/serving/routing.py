"""Which replica takes the next request: the one that was given the fewest image steps that have not ended.

Image steps are images times steps: ten images of 250 steps are not as one of 10, as they would be where
requests are counted. Knows nothing else of the package, and no Ray; `deployments.router` asks.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

R = TypeVar("R", bound=Hashable)

FORGOTTEN_AFTER = 3600.0
"""Seconds after which a request counts as ended: one given up before it was sent is not heard of again."""


@dataclass(frozen=True)
class _Given:
    replica: Hashable
    image_steps: int
    at: float


class Outstanding:
    """The requests that one caller gave to replicas, and that have not ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: dict[str, _Given] = {}
        """By the request's id, those given first in front."""
        self._turns: dict[Hashable, int] = {}
        self._turn = 0

    def give(self, request: str, replica: Hashable, image_steps: int) -> None:
        """The replica gets this request; one that was given before goes to another replica."""
        self._given.pop(request, None)
        self._given[request] = _Given(replica, image_steps, self._clock())
        self._turn += 1
        self._turns[replica] = self._turn

    def end(self, request: str) -> None:
        """The request has ended, however it did; nothing happens if it is not known."""
        self._given.pop(request, None)

    def ranked(self, replicas: Iterable[R]) -> list[R]:
        """These replicas, that with the fewest steps first; of equal ones that whose turn is longest ago."""
        self._forget()
        steps: dict[Hashable, int] = {}
        for given in self._given.values():
            steps[given.replica] = steps.get(given.replica, 0) + given.image_steps
        there = list(replicas)
        self._turns = {replica: self._turns.get(replica, 0) for replica in there}
        return sorted(there, key=lambda replica: (steps.get(replica, 0), self._turns[replica]))

    def _forget(self) -> None:
        oldest = self._clock() - FORGOTTEN_AFTER
        for request, given in list(self._given.items()):
            if given.at > oldest:
                return
            del self._given[request]
