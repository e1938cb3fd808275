"""Shards made by Ray Data actors: numbers go in, finished objects come out. Encode, generate and evaluate work this way.

A maker lives in an actor with its model and builds a shard in memory; the actor puts it through the job protocol, so a
lost actor or a repeated try costs time and nothing else. Ray Data keeps the pool of actors: it places them, restarts them
and starts more where the cluster grows. Which actor makes which shard is not its business: each actor pulls numbers from
a coordinator until none is left, so whoever is ready works, however late it came. The driver holds shard numbers and
counts, never rows of data, and takes them from the coordinator: when an actor is restarted, Ray Data drops as many of its
rows as its first life had yielded.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_dit.config import EncodeConfig, GenerateConfig, ShardsConfig
from ray_dit.errors import UserError, first_message
from ray_dit.ledger.job import HashAlarm, Job, RunRecord
from ray_dit.ledger.maintenance import repair
from ray_dit.ledger.results import F, Facts, Marker
from ray_dit.results import ShardFacts
from ray_dit.runtime.progress import Advance, progress
from ray_dit.runtime.session import debugging, ray_session
from ray_dit.runtime.shard_queue import STARTS, TRIES, Failure, ShardQueue, Turn
from ray_dit.storage.store import Store

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


class ShardMaker(Protocol):
    """Lives in an actor; made with its model loaded, compiled and warm.

    A shard has three phases. Each is a pure function of the job and its argument, so an actor may run those of different
    shards at the same time without changing a byte.
    """

    def prepare(self, shard: int) -> Any:
        """Reads and decodes what the shard needs; in any thread, ahead of the shards before it."""
        ...

    def compute(self, inputs: Any) -> Any:
        """Uses the accelerator on what ``prepare`` gave; one call at a time."""
        ...

    def finish(self, outputs: Any) -> Made:
        """Compresses and serialises what ``compute`` gave; in any thread, while the next shard is computed."""
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
    """Makes the shards that have no marker yet on ``config.actors`` actors, each with ``gpus`` GPUs; shows progress.

    ``set_up`` prepares each actor's process, before ``build``, for the number of threads it is given.
    UserError, after everything else is done, if shards failed in all their tries; at once where no actor can work.
    """
    missing = _missing(job, len(work.sizes))
    total = sum(work.sizes)
    before = after = total - sum(work.sizes[shard] for shard in missing)
    run = job.run({"what": work.what, "actors": config.actors, "device": "gpu" if gpus else "cpu"})
    outcome = Outcome()
    if missing:
        with progress(work.what, total, work.unit, done=before) as advance:
            watch = _Watch(work, run, advance, done=before)
            arguments = {"job": job, "build": build, "set_up": set_up, "threads": config.threads}
            outcome = _fan_out(ray, config, missing, arguments, watch, gpus)
            after = watch.done
    run.end(
        **{work.unit: after - before, "shards": sum(outcome.made), "shards_by_actor": outcome.made},
        failed=sorted(outcome.lost),
    )
    if outcome.lost or outcome.stopped:
        raise UserError(_complaint(outcome, job, work, run))


def all_markers(job: Job, num_shards: int, facts: type[F]) -> Iterator[Marker[F]]:
    """The markers in shard order."""
    return job.markers(facts, [shard_name(shard) for shard in range(num_shards)])


def _missing(job: Job, num_shards: int) -> list[int]:
    """Numbers of the shards without a marker; markers are listed, not read."""
    there = set(job.names())
    return [shard for shard in range(num_shards) if shard_name(shard) not in there]


def repair_shards(config: EncodeConfig | GenerateConfig, job: Job, build: Callable[[], ShardMaker]) -> None:
    """``--repair``: reads the job's objects again and makes missing and damaged shards anew, in place; prints which.

    UserError if a shard's bytes do not come out as they were, or if the damaged object is no shard.
    """
    gpus = 1 if config.use_gpu else 0
    with ray_session(config) as ray:
        maker = ray.remote(num_cpus=config.threads, num_gpus=gpus)(_Maker).remote(build, config.threads)

        def rebuild(_: Store, marker: Marker[Facts]) -> bytes:
            shard = marker.facts.to_json().get("shard")
            if shard is None:
                where = job.store.where(marker.key)
                raise UserError(f"{where} is damaged and no shard: run the job in another folder")
            return ray.get(maker.rebuild.remote(shard))

        for problem in repair(job.store, rebuild):
            print(f"repaired {problem}")


class _Maker:
    """A shard maker in an actor of its own."""

    def __init__(self, build: Callable[[], ShardMaker], threads: int) -> None:
        set_up_torch(threads)
        self._maker = build()

    def rebuild(self, shard: int) -> bytes:
        return make_shard(self._maker, shard).data


@dataclass(frozen=True)
class Outcome:
    """How a fan-out ended."""

    made: list[int] = field(default_factory=lambda: [])
    """Shards made by each actor."""
    lost: dict[int, str] = field(default_factory=lambda: {})
    """Shards that failed in all their tries, with the cause of the last one."""
    stopped: str | None = None
    """Why it ended before all shards had been tried."""


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


class Coordinator:
    """An actor beside the driver that tells the others which shard to make next: a ShardQueue with clock and handles."""

    def __init__(self, shards: Sequence[int], deadline: float | None) -> None:
        self._queue = ShardQueue(shards, deadline=deadline)
        self._handles: dict[str, Any] = {}
        self._finished: list[int] = []
        self._failures: list[tuple[Failure, str]] = []
        self._start_errors: list[tuple[str, str]] = []

    def join(self, worker: str, process: str, handle: Any) -> bool:
        """An actor has started, or was restarted; what its process before was making is free again.

        False where all is over, so that it need not load a model.
        """
        self._handles[worker] = handle
        self._failures += [(failure, "") for failure in self._queue.join(worker, process)]
        return not self._queue.over

    def take(self, worker: str) -> Turn:
        """What the actor shall do."""
        return self._queue.take(worker, time.monotonic())

    def finish(self, worker: str, shard: int) -> Turn:
        """The shard and its marker are stored; what the actor shall do next."""
        if self._queue.finish(worker, shard, time.monotonic()):
            self._finished.append(shard)
        return self.take(worker)

    def fail(self, worker: str, shard: int, cause: str, trace: str) -> Turn:
        """A try raised; what the actor shall do next."""
        failure = self._queue.fail(worker, shard, cause)
        if failure is not None:
            self._failures.append((failure, trace))
        return self.take(worker)

    def note_start_error(self, cause: str, trace: str) -> None:
        """An actor could not load its model, for a reason that need not hold for the next process."""
        self._queue.note_start_error(cause)
        self._start_errors.append((cause, trace))

    def stop(self, why: str) -> None:
        """Nobody can do this job: no more shards are handed out."""
        self._queue.stop(why)

    def news(self) -> News:
        """What has happened since the last call; takes shards from actors that are past their deadline."""
        workers, failures = self._queue.overdue(time.monotonic())
        self._failures += [(failure, "") for failure in failures]
        stuck = [self._handles[worker] for worker in workers]
        news = News(self._finished, self._failures, self._start_errors, stuck)
        self._finished, self._failures, self._start_errors = [], [], []
        return news

    def outcome(self) -> Outcome:
        """How things stand."""
        return Outcome(list(self._queue.made.values()), dict(self._queue.lost), self._queue.stopped)

    def handles(self) -> list[Any]:
        """All actors that ever joined."""
        return list(self._handles.values())


class _Actor:
    """What Ray Data makes one of per actor: pulls shards, makes them, and reports how it went.

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

        set_up(threads)
        context = ray.get_runtime_context()
        self._get, self._coordinator, self._job = ray.get, coordinator, job
        self._id = context.get_actor_id()
        self._maker: ShardMaker | None = None
        if not self._get(coordinator.join.remote(self._id, uuid.uuid4().hex, context.current_actor)):
            return
        try:
            self._maker = build()
        except UserError as error:  # holds for every actor
            self._get(coordinator.stop.remote(str(error)))
        except (
            Exception
        ) as error:  # may be this process's or machine's: Ray starts the actor again in a new process
            cause = f"{type(error).__name__}: {error}"
            self._get(coordinator.note_start_error.remote(cause, traceback.format_exc()))
            os._exit(1)

    def __call__(self, _: dict[str, Any]) -> Iterator[dict[str, list[int]]]:
        """Works until nothing is left; yields the number of each finished shard at once, and -1 at the very end."""
        turn: Turn = self._get(self._coordinator.take.remote(self._id))
        while not turn.over:
            if turn.shard is None:
                time.sleep(PAUSE)
                turn = self._get(self._coordinator.take.remote(self._id))
                continue
            shard = turn.shard
            turn = self._get(self._make(shard))
            yield {"shard": [shard]}
        yield {"shard": [-1]}

    def _make(self, shard: int) -> Any:
        """Makes and stores a shard; the pending answer of the coordinator that was told how it went."""
        assert self._maker is not None, "a coordinator that was stopped hands out no shards"
        name = shard_name(shard)
        try:
            if self._job.marker(name, ShardFacts) is None:  # another try may have made it
                made = make_shard(self._maker, shard)
                self._job.put(name, made.key, made.data, made.facts)
        except HashAlarm as alarm:
            self._get(self._coordinator.stop.remote(str(alarm)))
            return self._coordinator.take.remote(self._id)
        except Exception as error:
            cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return self._coordinator.fail.remote(self._id, shard, cause, traceback.format_exc())
        return self._coordinator.finish.remote(self._id, shard)


@dataclass
class _Watch:
    """The driver's eyes: shows progress and failures, writes the latter down, ends actors that are stuck."""

    work: Work
    run: RunRecord
    advance: Advance
    done: int

    def look(self, ray: Any, coordinator: Any) -> None:
        """Takes in what has happened since the last look."""
        news: News = ray.get(coordinator.news.remote())
        for handle in news.stuck:  # also works on a stopped process; Ray starts it again
            ray.kill(handle, no_restart=False)
        for failure, trace in news.failures:
            which = f"shard {failure.shard} failed (try {failure.failures} of {TRIES})"
            self._report(which, failure.cause, trace, {"shard": failure.shard, "try": failure.failures})
        for cause, trace in news.start_errors:
            self._report("an actor could not start", cause, trace, {})
        self.done += sum(self.work.sizes[shard] for shard in news.finished)
        self.advance(self.done)

    def _report(self, what: str, cause: str, trace: str, facts: dict[str, int]) -> None:
        print(f"{self.work.what}: {what}: {cause}", file=sys.stderr)
        with contextlib.suppress(UserError):  # a record that storage refuses must not end the watch
            self.run.event(what, cause=cause, traceback=trace, **facts)


@contextlib.contextmanager
def _watched(ray: Any, coordinator: Any, watch: _Watch) -> Iterator[None]:
    """Looks again and again from a thread, for the driver itself waits for rows that may be long in coming."""
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.wait(PAUSE):
            watch.look(ray, coordinator)

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)
    watch.look(ray, coordinator)


def _fan_out(
    ray: Any, config: ShardsConfig, shards: list[int], arguments: dict[str, Any], watch: _Watch, gpus: int
) -> Outcome:
    """Lets actors, made with these ``arguments``, pull the shards until each is made or given up."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    coordinator = ray.remote(num_cpus=0, scheduling_strategy=here)(Coordinator).remote(
        shards, config.shard_deadline
    )
    actors = min(config.actors, len(shards))
    with ray.data.DataContext.current(_data_context(ray, actors)):
        # A slot is an input block for Ray Data to give to an actor, which then works until the job is over. Twice as many
        # as actors, so that one that is lost for good does not take the last one along.
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
                f"Ray gave up the actors of {watch.work.what}: {first_message(error)}; what is finished stays, and the same "
                "command goes on there"
            ) from error
        finally:
            # The job is over, but actors may still be busy: with a shard that another one made first, or for ever.
            for handle in ray.get(coordinator.handles.remote()):
                ray.kill(handle)
            del rows


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
    # one task in flight per actor is full use of it: the default, above 1, would never let a pool grow
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    for handler in logging.getLogger("ray.data").handlers:  # set up when ray.data is imported, so not before
        if getattr(handler, "stream", None) is sys.stderr:
            handler.setLevel(logging.ERROR if debugging() else logging.CRITICAL)
    return context


def _complaint(outcome: Outcome, job: Job, work: Work, run: RunRecord) -> str:
    """The sentence that ends a job of which something is missing."""
    if outcome.stopped and not outcome.lost:
        return outcome.stopped
    shown = "; ".join(f"shard {shard}: {cause}" for shard, cause in sorted(outcome.lost.items())[:SHOWN])
    more = f" and {len(outcome.lost) - SHOWN} more" if len(outcome.lost) > SHOWN else ""
    early = f", and the rest was not tried: {outcome.stopped}" if outcome.stopped else ""
    return (
        f"{len(outcome.lost)} of {len(work.sizes)} shards failed in all {TRIES} tries ({shown}{more}){early}; the finished "
        f"ones stay, and the same command makes what is missing once the cause is gone (each failure is in "
        f"{job.store.where(f'_runs/{run.id}/events')})"
    )
