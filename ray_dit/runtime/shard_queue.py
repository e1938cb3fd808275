"""Which worker makes which shard next: leases, tries, deadlines, work done twice at the end.

Knows neither Ray nor clocks: workers are names, and every call that depends on time is told it, in seconds. So what
happens when workers are late, slow, killed or stuck can be tested as a sequence of calls.

A worker *takes* one shard at a time and reports it *finished* or *failed*. Nothing is handed out in advance, so no worker
waits while another sits on shards it has not begun.
"""

import bisect
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

TRIES = 3
"""How often a shard that raises, kills its process or hangs is tried."""
LEAST_DEADLINE = 15 * 60.0
"""Seconds that a shard may always take."""
DEADLINE_IN_MEDIANS = 20.0
"""How many times the median of the finished shards another shard may take."""
STARTS = 3
"""How often in a row, on average over the workers, a process may end before it asks for work."""
HOPELESS = 30
"""Different shards failing one after the other, none finished in between, after which the rest is not tried."""


@dataclass(frozen=True)
class Turn:
    """What a worker that asks for work is told: make ``shard``; or, if that is None, ask again soon; or it is over."""

    shard: int | None = None
    over: bool = False


@dataclass(frozen=True)
class Failure:
    """A try that failed."""

    shard: int
    failures: int
    """How many tries of the shard have failed by now."""
    cause: str


@dataclass
class _Shard:
    """An unfinished shard's holders, each with the time it began, and the causes of the tries that failed."""

    holders: dict[str, float] = field(default_factory=lambda: {})
    causes: list[str] = field(default_factory=lambda: [])


class ShardQueue:
    """The unfinished shards of a job and who works on them."""

    def __init__(self, shards: Iterable[int], *, deadline: float | None = None) -> None:
        """``deadline``: seconds a shard may take; by default ``max(15 min, 20 x the median)`` of those finished."""
        self._waiting = deque(shards)
        self._open = set(self._waiting)  # neither finished nor given up
        self._shards: dict[int, _Shard] = {}  # those that were taken or have failed, and are not finished
        self._processes: dict[str, str] = {}
        self._loading: set[str] = set()  # workers that have not asked for work since they joined
        self._broken_starts = 0  # in a row
        self._start_error: str | None = None
        self._deadline = deadline
        self._seconds: list[float] = []  # of the finished shards, sorted
        self._failed_in_a_row: set[int] = set()
        self.made: dict[str, int] = {}
        """Shards finished by each worker."""
        self.lost: dict[int, str] = {}
        """Shards given up after their last try, with the cause of that."""
        self.stopped: str | None = None
        """Why no more shards are handed out, where that is not because all have been."""

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do or to wait for."""
        return not self._open or self.stopped is not None

    def join(self, worker: str, process: str) -> list[Failure]:
        """A worker is there, or there again: what another ``process`` of that name held is free again, and has failed."""
        before = self._processes.get(worker)
        self._processes[worker] = process
        self.made.setdefault(worker, 0)
        if before is None or before == process:
            self._loading.add(worker)
            return []
        if worker in self._loading:
            self._broken_starts += 1
            if self._broken_starts >= STARTS * len(self._processes):
                cause = (
                    self._start_error
                    or "the process died while it loaded the model (killed, or out of memory)"
                )
                self.stop(f"{self._broken_starts} times in a row an actor could not start: {cause}")
        self._loading.add(worker)
        held = [shard for shard, state in self._shards.items() if worker in state.holders]
        died = "the process that made it died (killed, or out of memory)"
        return [failure for shard in held if (failure := self._fail(worker, shard, died))]

    def take(self, worker: str, now: float) -> Turn:
        """The worker's next shard: one that nobody has begun, else one that another worker has held for long."""
        if worker in self._loading:
            self._loading.remove(worker)
            self._broken_starts = 0
        if self.over:
            return Turn(over=True)
        while self._waiting:
            shard = self._waiting.popleft()
            if shard in self._open:  # else a try that was believed lost has finished it after all
                return self._lease(worker, shard, now)
        late = self._late(now)
        return Turn() if late is None else self._lease(worker, late, now)

    def finish(self, worker: str, shard: int, now: float) -> bool:
        """The shard is stored; True where nobody had finished it before. Also counts from a worker that lost its lease."""
        state = self._shards.pop(shard, _Shard())
        if shard not in self._open and shard not in self.lost:
            return False
        self._open.discard(shard)
        self.lost.pop(shard, None)
        self.made[worker] = self.made.get(worker, 0) + 1
        if worker in state.holders:
            bisect.insort(self._seconds, now - state.holders[worker])
        self._failed_in_a_row.clear()
        return True

    def fail(self, worker: str, shard: int, cause: str) -> Failure | None:
        """A try failed; the shard is tried again, after those that wait, unless it was the last try.

        None where that try does not count any more: the shard is finished, or was taken from the worker.
        """
        state = self._shards.get(shard)
        return self._fail(worker, shard, cause) if state and worker in state.holders else None

    def overdue(self, now: float) -> tuple[list[str], list[Failure]]:
        """Takes their shard from the workers that have held it for longer than the deadline.

        Returns those workers, whose processes must be ended, and the tries that failed so.
        """
        late = [
            (worker, shard, self._seconds_allowed(state))
            for shard, state in self._shards.items()
            for worker, since in state.holders.items()
            if now - since > self._seconds_allowed(state)
        ]
        slow = "(if it is only slow, raise --shard-deadline or make shards smaller)"
        failures = [
            self._fail(worker, shard, f"it was not finished within {allowed:.0f} s {slow}")
            for worker, shard, allowed in late
        ]
        return [worker for worker, _, _ in late], [failure for failure in failures if failure]

    def note_start_error(self, cause: str) -> None:
        """A worker could not get ready; its process ends now, and another one of that worker will join."""
        self._start_error = cause

    def stop(self, why: str) -> None:
        """Hands out nothing more; the first reason stays."""
        self.stopped = self.stopped or why

    def _lease(self, worker: str, shard: int, now: float) -> Turn:
        self._shards.setdefault(shard, _Shard()).holders[worker] = now
        return Turn(shard)

    def _late(self, now: float) -> int | None:
        """The shard that one worker has held longest, if that is longer than shards usually take.

        By then another worker would probably be done sooner, and whoever stores the shard first wins. Without it a slow,
        stuck or lost worker would hold up the end of the job.
        """
        usual = self._median()
        if usual is None:
            return None
        held = [
            (since, shard)
            for shard, state in self._shards.items()
            if len(state.holders) == 1
            for since in state.holders.values()
            if now - since >= usual
        ]
        return min(held)[1] if held else None

    def _fail(self, worker: str, shard: int, cause: str) -> Failure | None:
        """Ends a lease and counts a try; None where the shard was given up already."""
        state = self._shards[shard]
        del state.holders[worker]
        if shard in self.lost:
            return None
        state.causes.append(cause)
        failures = len(state.causes)
        self._failed_in_a_row.add(shard)
        if failures >= TRIES:
            self._open.discard(shard)
            self.lost[shard] = cause
        else:
            self._waiting.append(shard)
        if len(self._failed_in_a_row) >= HOPELESS:
            self.stop(f"{HOPELESS} different shards failed one after the other, the last because of: {cause}")
        return Failure(shard, failures, cause)

    def _median(self) -> float | None:
        return self._seconds[len(self._seconds) // 2] if self._seconds else None

    def _seconds_allowed(self, state: _Shard) -> float:
        if self._deadline is not None:
            return self._deadline
        usual = self._median()
        if usual is None:  # nothing tells a slow job from a stuck one yet: each try may take twice as long
            return LEAST_DEADLINE * 2 ** len(state.causes)
        return max(LEAST_DEADLINE, DEADLINE_IN_MEDIANS * usual)
