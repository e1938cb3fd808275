"""The actor that makes shards: pulls numbers from the coordinator, stores objects, reports how it went.

A shard has three phases, of which only the middle one needs the accelerator. So an actor has a few shards
under way, each in a *lane*: one is read while another is computed and a third is stored.
"""

import contextlib
import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from ray_dit.errors import CredentialsExpired, StoreFailure, UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Marker
from ray_dit.ledger.writers import HashAlarm
from ray_dit.results import ShardFacts
from ray_dit.runtime.account import Stopwatch
from ray_dit.runtime.shard_maker import Careful, ShardMaker, shard_name
from ray_dit.runtime.shard_queue import Turn
from ray_dit.storage.proven import trust_settings

ERRORS = 2
"""Errors in a row after which an actor goes on in a new process."""


class Actor:
    """Ray Data's callable class, one instance per actor: pulls shards, makes them, and reports how it went.

    Nothing that a shard raises reaches Ray, which would try a whole task again without end.
    """

    def __init__(
        self,
        coordinator: Any,
        job: Job,
        build: Callable[[], ShardMaker],
        set_up: Callable[[int], None],
        threads: int,
        lanes: int,
    ) -> None:
        import ray
        from ray.exceptions import ActorDiedError

        self._watch = Stopwatch()
        context = ray.get_runtime_context()
        self._get, self._coordinator, self._job, self._lanes = ray.get, coordinator, job, lanes
        self._orphaned = ActorDiedError
        self._id = context.get_actor_id()
        self._errors_in_a_row = 0
        self._maker: ShardMaker | None = None
        trust_settings()
        with contextlib.suppress(self._orphaned):
            # First of all, so that whatever ends this process from now on is noticed when the next one joins.
            if self._get(coordinator.join.remote(self._id, uuid.uuid4().hex, context.current_actor)):
                self._load(build, set_up, threads)

    def __call__(self, _: dict[str, Any]) -> Iterator[dict[str, list[bool]]]:
        """Works until nothing is left, or the coordinator has died; then yields a row, the only one.

        Each lane is a thread that brings one shard after the other from its number to its marker. What the
        lanes want computed is computed here, one at a time and always in the same thread: its results may
        depend on how many threads torch has, which each thread is told anew.
        """
        wanted: SimpleQueue[tuple[Future[Any], Any] | None] = SimpleQueue()
        with ThreadPoolExecutor(self._lanes, thread_name_prefix="lane") as pool:
            lanes = [pool.submit(self._work, lane, wanted) for lane in range(self._lanes)]
            working = len(lanes)
            while working:
                if (call := wanted.get()) is None:
                    working -= 1
                    continue
                answer, inputs = call
                try:
                    assert self._maker is not None
                    with self._watch.computing():
                        outputs = self._maker.compute(inputs)
                    answer.set_result(outputs)
                except BaseException as error:
                    answer.set_exception(error)
        for lane in lanes:
            lane.result()
        yield {"over": [True]}

    def _work(self, lane: int, wanted: SimpleQueue[tuple[Future[Any], Any] | None]) -> None:
        """One lane's shards, until nothing is left."""

        def compute(inputs: Any) -> Any:
            answer: Future[Any] = Future()
            wanted.put((answer, inputs))
            return answer.result()

        try:
            with contextlib.suppress(self._orphaned):
                while not (turn := self._take(lane)).over:
                    if turn.shard is None:
                        time.sleep(turn.wait)
                    elif (facts := self._make(turn.shard, compute, careful=turn.suspect)) is not None:
                        self._coordinator.finish.remote(self._id, turn.shard, facts)
        finally:
            wanted.put(None)

    def _load(self, build: Callable[[], ShardMaker], set_up: Callable[[int], None], threads: int) -> None:
        """Makes the maker, or reports why that failed."""
        try:
            set_up(threads)
            self._maker = build()
        except CredentialsExpired as error:
            self._get(self._coordinator.stop.remote(str(error)))
        except Exception as error:
            # A storage that does not answer now may do so in a minute; other errors of users will not go
            # away.
            for_all = isinstance(error, UserError) and not isinstance(error, StoreFailure)
            trace = traceback.format_exc()
            report = self._coordinator.fail_to_start.remote(_cause(error), trace, for_all=for_all)
            if not self._get(report):
                self._start_again()

    def _take(self, lane: int) -> Turn:
        return self._get(self._coordinator.take.remote(self._id, lane, self._watch.read()))

    def _make(self, shard: int, compute: Callable[[Any], Any], *, careful: bool) -> Mapping[str, Any] | None:
        """Makes and stores a shard; the facts of its marker, or None where that failed, which is reported."""
        assert self._maker is not None, "a coordinator that was stopped hands out no shards"
        name = shard_name(shard)
        try:
            marker: Marker[Any] | None = self._job.marker(name, ShardFacts)  # another try may have made it
            if marker is None:
                inputs = _prepare_carefully(self._maker, shard) if careful else self._maker.prepare(shard)
                made = self._maker.finish(compute(inputs))
                marker = self._job.put(
                    name, made.key, made.data, made.facts, varies=made.varies, files=made.files
                )
        except (HashAlarm, CredentialsExpired) as error:  # the other shards would end in the same
            self._get(self._coordinator.stop.remote(str(error)))
            return None
        except Exception as error:
            self._get(self._coordinator.fail.remote(self._id, shard, _cause(error), traceback.format_exc()))
            self._errors_in_a_row += 1
            # A process in which CUDA has failed once fails for ever, and fails fast.
            if self._errors_in_a_row >= ERRORS and not isinstance(error, UserError):
                self._start_again()
            return None
        self._errors_in_a_row = 0
        return marker.facts.to_json()

    def _start_again(self) -> None:
        """Ends this process; Ray starts the actor in a new one."""
        self._get(self._coordinator.leave.remote(self._id))
        os._exit(1)


def _prepare_carefully(maker: ShardMaker, shard: int) -> Any:
    return maker.prepare_carefully(shard) if isinstance(maker, Careful) else maker.prepare(shard)


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
