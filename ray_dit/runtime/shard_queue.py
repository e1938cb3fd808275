"""Which worker makes which shard next: leases, tries, deadlines, work done twice at the end.

Knows neither Ray nor clocks: workers are names, and every call that depends on time is told it, in seconds.
So what happens when workers are late, slow, killed or stuck can be tested as a sequence of calls.

A worker *takes* a shard and reports it *finished* or *failed*. It may have several under way, each in a lane
of its own: one is read while another is computed. It gets one ahead only while more wait than there are other
workers, so no worker waits while another sits on shards it has not begun.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

TRIES = 3
"""How often a shard that raises, kills its process or hangs is tried; a process that ends with several shards
counts for none of them."""
STARTS = 3
"""Starts in a row that may fail, times the number of workers, before nobody is expected to start."""
LEAST_DEADLINE = 15 * 60.0
"""Seconds that a shard may always take."""
DEADLINE_IN_MEDIANS = 20.0
"""How many times the median of the finished shards another shard may take."""
MOST_DOUBLINGS = 8
"""How often the deadline may double while nothing is finished: to 64 hours."""
HOPELESS = 30
"""Errors in a row, on every worker, after which the rest is not tried."""
LEAST_REST = 10.0
"""Seconds for which a shard that raised on a worker is left to the others."""
LONGEST_REST = 3600.0
"""Seconds for which a worker on which everything raises gets nothing to do; from 2 on, they double with each
error."""


LEAST_WAIT = 0.2
"""Seconds after which a worker that got no shard asks again."""
WAIT_PER_WORKER = 0.01
"""How many they are for each worker, where that is more: many idle workers must not keep the busy ones from
being heard."""


@dataclass(frozen=True)
class Turn:
    """What a worker that asks for work is told: make ``shard``; if None, ask again; or it is over."""

    shard: int | None = None
    over: bool = False
    suspect: bool = False
    """Whether a process ended that made this shard, perhaps by its fault."""
    wait: float = LEAST_WAIT
    """Seconds after which to ask again where there is no shard."""


@dataclass(frozen=True)
class Failure:
    """A try that failed."""

    shard: int
    failures: int
    """How many tries of the shard have failed by now."""
    cause: str
    counts: bool = True
    """Whether it is one of those: not where the process that ended made other shards too."""


@dataclass
class _Shard:
    """An unfinished shard: its holders, each with lane and the time it began, and the tries that failed."""

    holders: dict[str, tuple[int, float]] = field(default_factory=lambda: {})
    causes: list[str] = field(default_factory=lambda: [])
    failed_on: dict[str, float] = field(default_factory=lambda: {})
    """Workers it raised on, each with the time of the last error."""
    suspect: bool = False
    """Whether a process ended that held it, perhaps by its fault: it is made by a worker that has nothing
    else under way, so that another end of a process is its own fault."""


class Median:
    """That of numbers which come one by one; the greater of two in the middle.

    The smaller half and the larger one are heaps, so that a number takes little time however many there are.
    """

    def __init__(self) -> None:
        self._below: list[float] = []  # negated, so that the largest is first
        self._above: list[float] = []

    def add(self, number: float) -> None:
        """Takes one more."""
        heapq.heappush(self._above, -heapq.heappushpop(self._below, -number))
        if len(self._above) > len(self._below) + 1:
            heapq.heappush(self._below, -heapq.heappop(self._above))

    @property
    def value(self) -> float | None:
        """None before the first."""
        return self._above[0] if self._above else None


class ShardQueue:
    """The unfinished shards of a job and who works on them. A worker holds one shard per lane."""

    def __init__(self, shards: Iterable[int], *, deadline: float | None = None) -> None:
        """``deadline``: seconds a shard may take.

        By default ``max(15 min, 20 x the median)`` of those finished.
        """
        self._waiting = deque(shards)
        self._open = set(self._waiting)  # neither finished nor given up
        self._shards: dict[int, _Shard] = {}  # those that were taken or have failed, and are not finished
        self._processes: dict[str, str] = {}
        self._loading: set[str] = set()  # workers that have not asked for work since they joined
        self._condemned: set[str] = set()  # workers whose process ends: past their deadline, or by themselves
        self._failed_starts = 0  # in a row
        self._start_error: str | None = None
        self._deadline = deadline
        self._timeouts = 0
        self._usual = Median()  # seconds of the finished shards
        self._errors_in_a_row: dict[str, int] = {}
        self._last_error: dict[str, float] = {}
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

    @property
    def ready(self) -> bool:
        """Whether any worker has ever asked for work."""
        return len(self._errors_in_a_row) > 0

    def join(self, worker: str, process: str) -> list[Failure]:
        """A worker is there, or there again: what another ``process`` of that name held has failed."""
        before = self._processes.get(worker)
        self._processes[worker] = process
        self.made.setdefault(worker, 0)
        if before == process:
            return []
        if worker in self._loading:
            self._failed_starts += 1
            if self._failed_starts >= STARTS * len(self._processes):
                cause = (
                    self._start_error
                    or "the process died while it loaded the model (killed, or out of memory)"
                )
                self.stop(f"{self._failed_starts} times in a row an actor could not start: {cause}")
        self._loading.add(worker)
        self._condemned.discard(worker)
        return self._fail_all(worker, "the process that made it died (killed, or out of memory)")

    def take(self, worker: str, now: float, lane: int = 0) -> Turn:
        """The worker's next shard: one nobody has begun, else one that another worker has held for long.

        A worker that holds others gets one only where enough wait for all, and none held long.
        """
        if worker in self._loading:
            self._loading.remove(worker)
            self._failed_starts = 0
        self._errors_in_a_row.setdefault(worker, 0)
        if self.over:
            return Turn(over=True)
        if worker in self._condemned or self._rests(worker, now):
            return self._nothing()
        self._release(worker, lane)
        while self._waiting and self._waiting[0] not in self._open:
            self._waiting.popleft()  # a try that was believed lost has finished it after all
        held = self._held(worker)
        if held and (len(self._waiting) < len(self._processes) or any(map(self._is_suspect, held))):
            return self._nothing()
        for shard in self._waiting:
            if (
                shard in self._open
                and not self._is_for_others(shard, worker, now)
                and not (held and self._is_suspect(shard))
            ):
                self._waiting.remove(shard)
                return self._lease(worker, lane, shard, now)
        late = None if held else self._late(worker, now)
        return self._nothing() if late is None else self._lease(worker, lane, late, now)

    def finish(self, worker: str, shard: int, now: float) -> bool:
        """The shard is stored; True where nobody had finished it before.

        Also counts from a worker that lost its lease.
        """
        state = self._shards.pop(shard, _Shard())
        if shard not in self._open and shard not in self.lost:
            return False
        self._open.discard(shard)
        self.lost.pop(shard, None)
        self.made[worker] = self.made.get(worker, 0) + 1
        if worker in state.holders:
            self._usual.add(now - state.holders[worker][1])
        self._errors_in_a_row[worker] = 0
        self._failed_starts = 0
        return True

    def fail(self, worker: str, shard: int, cause: str, now: float) -> Failure | None:
        """A try raised; the shard is tried again, after those that wait, unless it was the last try.

        None where that try does not count any more: the shard is finished, or was taken from the worker.
        """
        self._errors_in_a_row[worker] = self._errors_in_a_row.get(worker, 0) + 1
        self._last_error[worker] = now
        if min(self._errors_in_a_row.values()) >= HOPELESS:
            self.stop(f"every actor has met {HOPELESS} errors in a row, the last: {cause}")
        state = self._shards.get(shard)
        if state is None or worker not in state.holders:
            return None
        state.failed_on[worker] = now
        return self._fail(worker, shard, cause)

    def overdue(self, now: float) -> tuple[list[str], list[Failure]]:
        """Takes all their shards from the workers that have held one for longer than the deadline.

        Returns those workers, whose processes must be ended, and what failed so. They get nothing
        more to do until their next process has joined.
        """
        allowed = self._seconds_allowed()
        late = list(
            dict.fromkeys(
                worker
                for state in self._shards.values()
                for worker, (_, since) in state.holders.items()
                if now - since > allowed
            )
        )
        cause = (
            f"it was not finished within {allowed:.0f} s (if it is only slow, raise --shard-deadline or make "
            "shards smaller)"
        )
        failures = [failure for worker in late for failure in self._fail_all(worker, cause)]
        self._timeouts += len(late)
        self._condemned |= set(late)
        return late, failures

    def leave(self, worker: str) -> None:
        """The worker ends its process after errors; what else it held is free again.

        It gets nothing more to do until its next process has joined.
        """
        for shard in self._held(worker):
            self._free(worker, shard)
        self._condemned.add(worker)

    def note_start_error(self, cause: str) -> None:
        """A worker could not get ready; its process ends now, and another one of that worker will join."""
        self._start_error = cause

    def stop(self, why: str) -> None:
        """Hands out nothing more; the first reason stays."""
        self.stopped = self.stopped or why

    def _lease(self, worker: str, lane: int, shard: int, now: float) -> Turn:
        self._shards.setdefault(shard, _Shard()).holders[worker] = lane, now
        return Turn(shard, suspect=self._is_suspect(shard))

    def _nothing(self) -> Turn:
        return Turn(wait=max(LEAST_WAIT, WAIT_PER_WORKER * len(self._processes)))

    def _is_suspect(self, shard: int) -> bool:
        return shard in self._shards and self._shards[shard].suspect

    def _held(self, worker: str) -> list[int]:
        return [shard for shard, state in self._shards.items() if worker in state.holders]

    def _release(self, worker: str, lane: int) -> None:
        """A lane that asks for work holds none: the answer that gave it this shard was lost on the way."""
        for shard in self._held(worker):
            if self._shards[shard].holders[worker][0] == lane:
                self._free(worker, shard)

    def _free(self, worker: str, shard: int) -> None:
        """Ends a lease that did not fail; where nobody else holds the shard, it is next."""
        state = self._shards[shard]
        del state.holders[worker]
        if not state.holders:
            self._waiting.appendleft(shard)

    def _rests(self, worker: str, now: float) -> bool:
        """Whether the worker gets nothing for now.

        A broken machine fails fast, and would use up tries of every shard.
        """
        errors = self._errors_in_a_row[worker]
        if not errors or not self._others_fare_better(worker):
            return False
        return now - self._last_error[worker] < min(2.0**errors, LONGEST_REST)

    def _is_for_others(self, shard: int, worker: str, now: float) -> bool:
        """Whether the shard is left to other workers for now: it raised on this one, perhaps by its fault."""
        state = self._shards.get(shard)
        if state is None or worker not in state.failed_on or not self._others_fare_better(worker):
            return False
        return now - state.failed_on[worker] < max(LEAST_REST, self._usual.value or 0.0)

    def _others_fare_better(self, worker: str) -> bool:
        return any(not errors for other, errors in self._errors_in_a_row.items() if other != worker)

    def _late(self, worker: str, now: float) -> int | None:
        """The shard that one worker has held longest, if that is longer than shards usually take.

        By then another worker would probably be done sooner, and whoever stores the shard first wins. Without
        it a slow, stuck or lost worker would hold up the end of the job.
        """
        usual = self._usual.value
        if usual is None:
            return None
        held = [
            (since, shard)
            for shard, state in self._shards.items()
            if len(state.holders) == 1
            and len(state.causes) + 1
            < TRIES  # with the one under way: a deadly shard must not go on for ever
            and not self._is_for_others(shard, worker, now)
            for _, since in state.holders.values()
            if now - since >= usual
        ]
        return min(held)[1] if held else None

    def _fail_all(self, worker: str, cause: str) -> list[Failure]:
        """The worker's process has ended, or must be: it has failed to make what it held.

        That counts as a try of a shard that it held alone. Of several, no more than one is at fault, and each
        is made alone from then on.
        """
        held = self._held(worker)
        for shard in held:
            self._shards[shard].suspect = True
        return [self._fail(worker, shard, cause, counts=len(held) == 1) for shard in held]

    def _fail(self, worker: str, shard: int, cause: str, *, counts: bool = True) -> Failure:
        """Ends a lease. A shard that nobody else holds is tried again, or given up after its last try."""
        state = self._shards[shard]
        del state.holders[worker]
        state.causes += [cause] if counts else []
        if not state.holders:  # else another worker is still at it, and may be about to finish
            if len(state.causes) >= TRIES:
                self._open.discard(shard)
                self.lost[shard] = cause
            else:
                self._waiting.append(shard)
        return Failure(shard, len(state.causes), cause, counts)

    def _seconds_allowed(self) -> float:
        if self._deadline is not None:
            return self._deadline
        usual = self._usual.value
        if usual is not None:
            return max(LEAST_DEADLINE, DEADLINE_IN_MEDIANS * usual)
        # Nothing tells a slow job from a stuck one yet: each time that all have timed out, all may take twice
        # as long.
        return LEAST_DEADLINE * 2 ** min(self._timeouts // max(len(self._processes), 1), MOST_DOUBLINGS)
