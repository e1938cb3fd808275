"""Shards made by Ray Data actors: numbers go in, finished objects come out.

Encode, generate and evaluate work this way.

A maker lives in an actor with its model and builds a shard in memory; the actor puts it through the job
protocol, so a lost actor or a repeated try costs time and nothing else. Ray Data keeps the pool of actors: it
places them, restarts them and starts more where the cluster grows. Which actor makes which shard is not its
business: each actor pulls numbers from a coordinator until none is left, so whoever is ready works, however
late it came. The driver holds shard numbers and counts, never rows of data, and takes them from the
coordinator: when an actor is restarted, Ray Data drops as many of its rows as its first life had yielded.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ray_dit.config import ShardsConfig
from ray_dit.errors import CredentialsExpired, StoreFailure, UserError, first_message
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import F, Marker
from ray_dit.ledger.runs import RunRecord
from ray_dit.ledger.writers import HashAlarm
from ray_dit.results import ShardFacts
from ray_dit.runtime.coordinator import Coordinator, News, Outcome
from ray_dit.runtime.progress import Advance, progress
from ray_dit.runtime.session import check_resources, debugging
from ray_dit.runtime.shard_queue import STARTS, TRIES, Turn
from ray_dit.storage.proven import trust_settings

ERRORS = 2
"""Errors in a row after which an actor goes on in a new process."""
PAUSE = 0.2
"""Seconds after which an idle actor asks again, and the driver looks at what has happened."""
SHOWN = 3
"""Failed shards whose causes the closing message tells; all are in the run's record."""


def set_up_torch(threads: int) -> None:
    """Prepares an actor's process for computing what is stored."""
    from ray_dit.core.determinism import make_deterministic

    make_deterministic(threads)


@dataclass(frozen=True)
class Made:
    """A finished shard: where it goes, its bytes, and the facts for its marker."""

    key: str
    data: bytes
    facts: ShardFacts
    varies: bool = False
    """Whether other bytes may come out another time, as something it is made of is gone or changed."""


class ShardMaker(Protocol):
    """Lives in an actor; made with its model loaded, compiled and warm.

    A shard has three phases. Each is a pure function of the job and its argument, so an actor may run those
    of different shards at the same time without changing a byte.
    """

    def prepare(self, shard: int) -> Any:
        """Reads and decodes what the shard needs; in any thread, ahead of the shards before it."""
        ...

    def compute(self, inputs: Any) -> Any:
        """Uses the accelerator on what ``prepare`` gave; one call at a time."""
        ...

    def finish(self, outputs: Any) -> Made:
        """Compresses and serialises what ``compute`` gave.

        In any thread, while the next shard is computed.
        """
        ...


@runtime_checkable
class Remaker(Protocol):
    """A maker whose shards follow not from their numbers alone, but also from what was there to make them."""

    def make_again(self, key: str, facts: Mapping[str, Any]) -> Made:
        """The shard of any generation that lies at ``key``, as its marker's facts say it was."""
        ...


def make_shard(maker: ShardMaker, shard: int) -> Made:
    """The three phases, one after the other."""
    return maker.finish(maker.compute(maker.prepare(shard)))


@dataclass(frozen=True)
class Work:
    """What a stage wants made."""

    what: str
    """The stage's name, for progress and records."""
    unit: str
    """What progress counts, in the plural."""
    sizes: Sequence[int]
    """How many of them each shard holds, by the plan: progress needs no marker to be read."""
    first: int = 0
    """Number of the first shard; the generations before have those below."""
    generation: int = 0
    """Of the job."""

    @property
    def numbers(self) -> range:
        """Those of the shards."""
        return range(self.first, self.first + len(self.sizes))

    def size(self, shard: int) -> int:
        """How many the shard of this number holds."""
        return self.sizes[shard - self.first]


def shard_name(shard: int) -> str:
    """Name of a shard's marker."""
    return f"{shard:05d}"


def shard_sizes(total: int, shard_size: int) -> list[int]:
    """How many of ``total`` things each shard holds: ``shard_size``, and in the last one the rest."""
    return [min(shard_size, total - first) for first in range(0, total, shard_size)]


def make_shards(
    ray: Any,
    config: ShardsConfig,
    job: Job,
    build: Callable[[], ShardMaker],
    work: Work,
    *,
    gpus: int = 0,
    set_up: Callable[[int], None] = set_up_torch,
) -> None:
    """Makes the shards that have no marker yet, and shows progress.

    There are ``config.actors`` actors, each with ``gpus`` GPUs.
    ``set_up`` prepares each actor's process, before ``build``, for the number of threads it is given.
    UserError, after everything else is done, if shards failed in all their tries; at once where no actor can
    work.
    """
    missing = _missing(job, work.numbers)
    total = sum(work.sizes)
    before = after = total - sum(map(work.size, missing))
    outcome = Outcome()
    with job.run({"what": work.what, "actors": config.actors, "device": "gpu" if gpus else "cpu"}) as run:
        if missing:
            check_resources(ray, config, cpus=config.threads, gpus=gpus)
            with progress(work.what, total, work.unit, done=before) as advance:
                watch = _Watch(work, run, advance, done=before)
                arguments = {"job": job, "build": build, "set_up": set_up, "threads": config.threads}
                outcome = _fan_out(ray, config, missing, arguments, watch, gpus)
                after = watch.done
        run.end(
            **{work.unit: after - before, "shards": sum(outcome.made), "shards_by_actor": outcome.made},
            failed=sorted(outcome.lost),
        )
        if outcome.lost or outcome.stopped or not outcome.over:
            raise UserError(_complaint(outcome, job, work, run))


def all_markers(job: Job, num_shards: int, facts: type[F], *, first: int = 0) -> Iterator[Marker[F]]:
    """The markers in shard order; ``first``: see ``Work``."""
    return job.markers(facts, map(shard_name, range(first, first + num_shards)))


def _missing(job: Job, numbers: Iterable[int]) -> list[int]:
    """Those of the shards that have no marker; markers are listed, not read."""
    there = set(job.names())
    return [shard for shard in numbers if shard_name(shard) not in there]


class _Actor:
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
    ) -> None:
        import ray

        context = ray.get_runtime_context()
        self._get, self._coordinator, self._job = ray.get, coordinator, job
        self._id = context.get_actor_id()
        self._errors_in_a_row = 0
        self._maker: ShardMaker | None = None
        trust_settings()
        # First of all, so that whatever ends this process from now on is noticed when the next one joins.
        if not self._get(coordinator.join.remote(self._id, uuid.uuid4().hex, context.current_actor)):
            return
        try:
            set_up(threads)
            self._maker = build()
        except Exception as error:
            if isinstance(error, CredentialsExpired):
                self._get(coordinator.stop.remote(str(error)))
                return
            # A storage that does not answer now may do so in a minute; other errors of users will not go
            # away.
            for_all = isinstance(error, UserError) and not isinstance(error, StoreFailure)
            report = coordinator.fail_to_start.remote(_cause(error), traceback.format_exc(), for_all=for_all)
            if not self._get(report):
                self._start_again()

    def __call__(self, _: dict[str, Any]) -> Iterator[dict[str, list[int]]]:
        """Works until nothing is left.

        Yields the number of each finished shard at once, and -1 at the very end.
        """
        while not (turn := self._take()).over:
            if turn.shard is None:
                time.sleep(PAUSE)
            elif self._make(turn.shard):
                self._coordinator.finish.remote(self._id, turn.shard)
                # The next shard is taken after this row has left: the driver may be slow to take rows, and
                # the deadline of a shard must not run meanwhile.
                yield {"shard": [turn.shard]}
        yield {"shard": [-1]}

    def _take(self) -> Turn:
        return self._get(self._coordinator.take.remote(self._id))

    def _make(self, shard: int) -> bool:
        """Makes and stores a shard; False where that failed, which is reported."""
        assert self._maker is not None, "a coordinator that was stopped hands out no shards"
        name = shard_name(shard)
        try:
            if self._job.marker(name, ShardFacts) is None:  # another try may have made it
                made = make_shard(self._maker, shard)
                self._job.put(name, made.key, made.data, made.facts, varies=made.varies)
        except (HashAlarm, CredentialsExpired) as error:  # the other shards would end in the same
            self._get(self._coordinator.stop.remote(str(error)))
            return False
        except Exception as error:
            self._get(self._coordinator.fail.remote(self._id, shard, _cause(error), traceback.format_exc()))
            self._errors_in_a_row += 1
            # A process in which CUDA has failed once fails for ever, and fails fast.
            if self._errors_in_a_row >= ERRORS and not isinstance(error, UserError):
                self._start_again()
            return False
        self._errors_in_a_row = 0
        return True

    def _start_again(self) -> None:
        """Ends this process; Ray starts the actor in a new one."""
        os._exit(1)


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


@dataclass
class _Watch:
    """The driver's eyes: shows progress and failures, writes the latter down, ends actors that are stuck."""

    work: Work
    run: RunRecord
    advance: Advance
    done: int
    recording: bool = True

    def look(self, ray: Any, coordinator: Any) -> None:
        """Takes in what has happened since the last look."""
        news: News = ray.get(coordinator.news.remote())
        for handle in news.stuck:  # also works on a stopped process; Ray starts it again
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(handle, no_restart=False)
        self.done += sum(map(self.work.size, news.finished))
        with contextlib.suppress(OSError):  # nobody may be reading standard error any more
            self.advance(self.done)
        for failure, trace in news.failures:
            which = f"shard {failure.shard} failed (try {failure.failures} of {TRIES})"
            self._report(which, failure.cause, trace, {"shard": failure.shard, "try": failure.failures})
        for cause, trace in news.start_errors:
            self._report("an actor could not start", cause, trace, {})

    def _report(self, what: str, cause: str, trace: str, facts: dict[str, int]) -> None:
        with contextlib.suppress(OSError):
            print(f"{self.work.what}: {what}: {cause}", file=sys.stderr)
        if self.recording:
            try:
                self.run.event(what, cause=cause, traceback=trace, **facts)
            except UserError:  # storage refuses, or stays silent for minutes: the watch must go on
                self.recording = False


@contextlib.contextmanager
def _watched(ray: Any, coordinator: Any, watch: _Watch) -> Iterator[None]:
    """Looks again and again from a thread: the driver itself waits for rows that may be long in coming."""
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.wait(PAUSE):
            with contextlib.suppress(ray.exceptions.RayError):  # the driver meets it too, and says so
                watch.look(ray, coordinator)

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    watch.look(ray, coordinator)


def _fan_out(
    ray: Any, config: ShardsConfig, shards: list[int], arguments: dict[str, Any], watch: _Watch, gpus: int
) -> Outcome:
    """Lets actors, made with these ``arguments``, pull the shards until each is made or given up."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    # Calls that a network fault interrupts are repeated, which does no harm.
    coordinator = ray.remote(num_cpus=0, max_task_retries=-1, scheduling_strategy=here)(Coordinator).remote(
        shards, config.shard_deadline
    )
    actors = min(config.actors, len(shards))
    with ray.data.DataContext.current(_data_context(ray, actors)):
        # A slot is an input block for Ray Data to give to an actor, which then works until the job is over.
        # Twice as many as actors: the last row of an actor that was restarted may be dropped, and a spare
        # slot yields it again.
        slots = 2 * actors
        rows = (
            ray.data.from_items([{"slot": slot} for slot in range(slots)], override_num_blocks=slots)
            .map_batches(
                _Actor,
                fn_constructor_kwargs={"coordinator": coordinator, **arguments},
                batch_size=1,
                num_cpus=config.threads,
                num_gpus=gpus,
                compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            )
            .iter_rows()
        )
        try:
            with _watched(ray, coordinator, watch):
                for row in rows:
                    if row["shard"] < 0:
                        break
            return ray.get(coordinator.outcome.remote())
        except ray.exceptions.RayError as error:
            raise UserError(
                f"Ray gave up the actors of {watch.work.what}: {first_message(error)}; what is finished "
                "stays, and the same command continues from it"
            ) from error
        finally:
            _end(ray, coordinator)
            del rows


def _end(ray: Any, coordinator: Any) -> None:
    """Ends the actors, which may still be busy: with a shard that another one made first, or for ever."""
    with contextlib.suppress(ray.exceptions.RayError):
        for handle in ray.get(coordinator.handles.remote()):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(handle)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(coordinator)  # last: an actor that is still starting can't join any more, and ends


def _data_context(ray: Any, actors: int) -> Any:
    """Ray Data's settings for a fan-out: silent, each row on its way at once, no time limit but ours."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # bytes: a row leaves the actor as soon as it is yielded
    context.execution_no_progress_timeout_s = -1  # a shard may take hours; deadlines are the coordinator's
    context.max_consecutive_actor_init_deaths = STARTS * actors - 1  # by default one death would end the job
    for handler in logging.getLogger("ray.data").handlers:  # set up when ray.data is imported, so not before
        if getattr(handler, "stream", None) is sys.stderr:
            handler.setLevel(logging.ERROR if debugging() else logging.CRITICAL)
    return context


def _complaint(outcome: Outcome, job: Job, work: Work, run: RunRecord) -> str:
    """The sentence that ends a job of which something is missing."""
    if outcome.stopped and not outcome.lost:
        return outcome.stopped
    if not outcome.lost:
        return (
            f"the actors of {work.what} ended before all was made; what is finished stays, and the same "
            "command goes on"
        )
    shown = "; ".join(f"shard {shard}: {cause}" for shard, cause in sorted(outcome.lost.items())[:SHOWN])
    more = f" and {len(outcome.lost) - SHOWN} more" if len(outcome.lost) > SHOWN else ""
    early = f", and the rest was not tried: {outcome.stopped}" if outcome.stopped else ""
    return (
        f"{len(outcome.lost)} of {len(work.sizes)} shards failed in all {TRIES} tries "
        f"({shown}{more}){early}; the finished ones stay, and the same command makes what is missing once "
        f"the cause is gone (each failure is in {job.store.where(f'_runs/{run.id}/events')})"
    )
