"""The actor that tells the others which shard to make next.

It is a ShardQueue with a clock and the actors' handles.

Actors call it by name, the driver asks it for news. It imports no Ray: it is made an actor by who starts it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_dit.runtime.account import NO_TIME, ActorTime
from ray_dit.runtime.shard_queue import Failure, ShardQueue, Turn

Enough = Callable[[Mapping[str, Any]], str | None]
"""Given the facts of each shard that was made, says why no more are to be; None while they are."""


@dataclass(frozen=True)
class Outcome:
    """How a fan-out ended."""

    made: list[int] = field(default_factory=lambda: [])
    """Shards made by each actor."""
    lost: dict[int, str] = field(default_factory=lambda: {})
    """Shards that failed in all their tries, with the cause of the last one."""
    stopped: str | None = None
    """Why it ended before all shards had been tried."""
    over: bool = True
    """Whether it was the coordinator that ended it."""
    orphaned: bool = False
    """Whether the coordinator's process died, so that nobody knows more than markers tell."""


@dataclass(frozen=True)
class News:
    """What has happened since the coordinator was asked before."""

    finished: list[int]
    failures: list[tuple[Failure, str]]
    """Each with a traceback, or an empty text where there is none."""
    start_errors: list[tuple[str, str]]
    """What kept actors from loading their model, each with a traceback."""
    stuck: list[Any]
    """Handles of the actors that passed their deadline."""
    joined: list[Any]
    """Handles of the actors that are not known yet to who asks."""
    lost: int
    """How many shards are given up."""
    time: ActorTime
    """Of all actors' processes, by their last words."""


class Coordinator:
    """A ShardQueue with a clock and the actors' handles, as an actor beside the driver."""

    def __init__(self, shards: Sequence[int], deadline: float | None, enough: Enough | None = None) -> None:
        self._queue = ShardQueue(shards, deadline=deadline)
        self._enough = enough
        self._handles: dict[str, Any] = {}
        self._processes: dict[str, str] = {}
        self._times: dict[str, ActorTime] = {}  # of each process
        self._finished: list[int] = []
        self._failures: list[tuple[Failure, str]] = []
        self._start_errors: list[tuple[str, str]] = []

    def join(self, worker: str, process: str, handle: Any) -> bool:
        """An actor has started, or was restarted; what its process before was making is free again.

        False where all is over, so that it need not load a model.
        """
        if self._queue.over:
            return False
        self._handles[worker] = handle
        self._processes[worker] = process
        self._failures += [(failure, "") for failure in self._queue.join(worker, process)]
        return not self._queue.over

    def take(self, worker: str, lane: int, time_so_far: ActorTime = NO_TIME) -> Turn:
        """The next turn of one of the actor's lanes. Asking twice does no harm: a lane holds one shard.

        Lanes ask after each shard, and often while there is none: so that is where they tell their process's
        time.
        """
        self._times[self._processes.get(worker, worker)] = time_so_far
        return self._queue.take(worker, time.monotonic(), lane)

    def finish(self, worker: str, shard: int, facts: Mapping[str, Any]) -> None:
        """The shard and its marker with these ``facts`` are stored."""
        if self._queue.finish(worker, shard, time.monotonic()):
            self._finished.append(shard)
            why = self._enough(facts) if self._enough else None
            if why is not None:
                self._queue.stop(why)

    def fail(self, worker: str, shard: int, cause: str, trace: str) -> None:
        """A try raised."""
        failure = self._queue.fail(worker, shard, cause, time.monotonic())
        if failure is not None:
            self._failures.append((failure, trace))

    def leave(self, worker: str) -> None:
        """An actor ends its process by itself; what its other lanes were making is free again."""
        self._queue.leave(worker)

    def fail_to_start(self, cause: str, trace: str, *, for_all: bool) -> bool:
        """An actor could not load its model; True where that ends the job.

        It does at once where the reason holds ``for_all``, such as a model that is not there, and none has
        ever been ready.
        """
        if for_all and not self._queue.ready:
            self._queue.stop(cause)
            return True
        self._queue.note_start_error(cause)
        self._start_errors.append((cause, trace))
        return False

    def stop(self, why: str) -> None:
        """No more shards are handed out."""
        self._queue.stop(why)

    def news(self, known: int) -> News:
        """What has happened since the last call; takes shards from actors that are past their deadline.

        ``known``: how many actors' handles who asks has. A handle costs both much more than a number does.
        """
        workers, failures = self._queue.overdue(time.monotonic())
        self._failures += [(failure, "") for failure in failures]
        stuck = [self._handles[worker] for worker in workers]
        news = News(
            self._finished,
            self._failures,
            self._start_errors,
            stuck,
            list(self._handles.values())[known:],
            lost=len(self._queue.lost),
            time=sum(self._times.values(), start=NO_TIME),
        )
        self._finished, self._failures, self._start_errors = [], [], []
        return news

    def outcome(self) -> Outcome:
        """How things stand."""
        queue = self._queue
        return Outcome(list(queue.made.values()), dict(queue.lost), queue.stopped, queue.over)
