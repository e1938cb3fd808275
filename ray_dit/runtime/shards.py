"""Shards made by Ray Data actors: numbers go in, finished objects come out.

Encode, generate and evaluate work this way.

A maker lives in an actor with its model and builds a shard in memory; the actor puts it through the job
protocol, so a lost actor or a repeated try costs time and nothing else. Ray Data keeps the pool of actors: it
places them, restarts them and starts more where the cluster grows. Which actor makes which shard is not its
business: each actor pulls numbers from a coordinator until none is left, so whoever is ready works, however
late it came (``shard_actor.py``). The driver holds shard numbers and counts, never rows of data, and takes
them from the coordinator.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_dit.config import ShardsConfig, range_of
from ray_dit.errors import UserError, first_message
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import F, Marker
from ray_dit.ledger.runs import RunRecord
from ray_dit.runtime.account import NO_TIME, Account, ActorTime
from ray_dit.runtime.coordinator import Coordinator, Enough, News, Outcome
from ray_dit.runtime.process import set_up_torch
from ray_dit.runtime.progress import Advance, progress
from ray_dit.runtime.session import beside_the_driver, check_resources, cpus_for, debugging, largest_node
from ray_dit.runtime.shard_actor import Actor
from ray_dit.runtime.shard_maker import ShardMaker, shard_name
from ray_dit.runtime.shard_queue import STARTS, TRIES, Failure

PAUSE = 0.2
"""Seconds after which the driver looks again at what has happened."""
LANES_BYTES = 2 << 30
"""Memory that the shards which an actor has under way may take together; a single one may take more."""
SHOWN = 3
"""Failed shards whose causes the closing message tells; all are in the run's record."""


@dataclass(frozen=True)
class Work:
    """What a stage wants made."""

    what: str
    """The stage's name, for progress and records."""
    unit: str
    """What progress counts, in the plural."""
    sizes: Sequence[int]
    """How many of them each shard holds, by the plan: progress needs no marker to be read."""
    lanes: int = 3
    """Shards an actor has under way: one that is read, one that is computed, one that is stored."""
    first: int = 0
    """Number of the first shard; the generations before have those below."""
    generation: int = 0
    """Of the job."""
    shard_bytes: int = 0
    """Memory that a shard takes while it is under way, about."""
    shared_bytes: int = 0
    """Memory that an actor takes beside it for all its shards together."""
    look_in: Callable[[Sequence[int]], None] | None = None
    """Told several times a second, in a thread of the driver's, which shards were finished meanwhile; neither
    raises nor waits."""

    @property
    def numbers(self) -> range:
        """Those of the shards."""
        return range(self.first, self.first + len(self.sizes))

    def size(self, shard: int) -> int:
        """How many the shard of this number holds."""
        return self.sizes[shard - self.first]


def lanes_for(shard_bytes: float) -> int:
    """How many shards of this size in memory an actor may have under way: one to three."""
    return int(min(3, max(1, LANES_BYTES // max(shard_bytes, 1))))


def reserve(ray: Any, config: ShardsConfig, work: Work) -> tuple[dict[str, int], int]:
    """The resources of one actor, as Ray names them, and how many shards it may have under way.

    They are fewer where no node has memory for all. UserError where a private Ray has not enough for one; a
    cluster may grow.
    """
    needed = {"num_cpus": cpus_for(ray, threads=config.threads, own_threads=config.own_threads)}
    if not work.shard_bytes:
        return needed, work.lanes
    there = int(largest_node(ray, "memory"))
    lanes = min(work.lanes, max(1, (there - work.shared_bytes) // work.shard_bytes))
    memory = lanes * work.shard_bytes + work.shared_bytes
    if memory > there and config.address == "local":
        raise UserError(
            f"a shard of {max(work.sizes)} {work.unit} takes {memory / 1e9:.1f} GB of memory, and this "
            f"machine's Ray has {there / 1e9:.1f} GB: take a smaller --shard-size"
        )
    return needed | {"memory": min(memory, there)}, lanes


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
    enough: Enough | None = None,
) -> None:
    """Makes the shards that have no marker yet, and shows progress.

    There are as many actors as ``config.actors`` allows and there is room for, each with ``gpus`` GPUs.
    ``set_up`` prepares each actor's process, before ``build``, for the number of threads it is given.
    ``enough`` is given the facts of each shard that is made here, and says why no more shall be.
    UserError, after everything else is done, if shards failed in all their tries; at once where no actor can
    work, or there is ``enough``.
    """
    missing = _missing(job, work.numbers)
    total = sum(work.sizes)
    before = after = total - sum(map(work.size, missing))
    outcome, begun, taken = Outcome(), time.monotonic(), NO_TIME
    with job.run({"what": work.what, "actors": config.actors, "device": "gpu" if gpus else "cpu"}) as run:
        if missing:
            resources, lanes = reserve(ray, config, work)
            fewest = min(config.fewest_actors, len(missing))
            check_resources(ray, config, cpus=fewest * resources["num_cpus"], gpus=fewest * gpus)
            resources |= {"num_gpus": gpus}
            with progress(work.what, total, work.unit, done=before) as advance:
                watch = _Watch(work, run, advance)
                watch.begin(missing)
                arguments = {
                    "job": job,
                    "build": build,
                    "set_up": set_up,
                    "threads": config.threads,
                    "lanes": lanes,
                }
                for _ in range(STARTS):
                    outcome = _fan_out(ray, config, missing, arguments, watch, resources, enough)
                    if not outcome.orphaned:
                        break
                    missing = _missing(job, work.numbers)
                    watch.begin(missing)
                    if not missing:
                        outcome = Outcome()
                        break
                after, taken = watch.done, watch.time
        account = Account(
            after - before, work.unit, time.monotonic() - begun, taken, price=config.price_per_hour
        )
        run.end(
            **{work.unit: after - before, "shards": sum(outcome.made), "shards_by_actor": outcome.made},
            **(account.facts() if taken.there else {}),
            failed=sorted(outcome.lost),
        )
        if account.made:
            with contextlib.suppress(OSError):
                print(f"{work.what}: {account}", file=sys.stderr)
        if outcome.lost or outcome.stopped or not outcome.over:
            raise UserError(_complaint(outcome, job, work, run))


def all_markers(job: Job, num_shards: int, facts: type[F], *, first: int = 0) -> Iterator[Marker[F]]:
    """The markers in shard order; ``first``: see ``Work``."""
    return job.markers(facts, map(shard_name, range(first, first + num_shards)))


def _missing(job: Job, numbers: Iterable[int]) -> list[int]:
    """Those of the shards that have no marker; markers are listed, not read."""
    there = set(job.names())
    return [shard for shard in numbers if shard_name(shard) not in there]


@dataclass
class _Watch:
    """The driver's eyes: shows progress and failures, writes the latter down, ends actors that are stuck."""

    work: Work
    run: RunRecord
    advance: Advance
    done: int = 0
    shards_done: int = 0
    retried: int = 0
    """Failures after which the shard was tried again."""
    lost: int = 0
    """Shards given up."""
    time: ActorTime = NO_TIME
    """Of all actors, those of earlier coordinators too."""
    recording: bool = True
    actors: list[Any] = field(default_factory=list[Any])
    """Handles of the actors of this fan-out, in the order in which they joined first."""
    _earlier: ActorTime = NO_TIME

    def begin(self, missing: Sequence[int]) -> None:
        """A coordinator, the first or another, will have these shards made, by actors of its own."""
        self.done = sum(self.work.sizes) - sum(map(self.work.size, missing))
        self.shards_done = len(self.work.sizes) - len(missing)
        self._earlier, self.actors = self.time, []

    @property
    def note(self) -> str:
        """What progress says beside how many are done."""
        words = [f"{self.shards_done:,}/{len(self.work.sizes):,} shards"]
        words += [f"{self.retried:,} retried"] if self.retried else []
        words += [f"{self.lost:,} failed"] if self.lost else []
        words += [f"actors compute {self.time.share:.0%} of the time"] if self.time.computing else []
        return ", ".join(words)

    def look(self, ray: Any, coordinator: Any) -> None:
        """Takes in what has happened since the last look."""
        news: News = ray.get(coordinator.news.remote(len(self.actors)))
        self.actors += news.joined
        for handle in news.stuck:  # also works on a stopped process; Ray starts it again
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(handle, no_restart=False)
        self.done += sum(map(self.work.size, news.finished))
        self.shards_done += len(news.finished)
        self.retried += sum(not failure.counts or failure.failures < TRIES for failure, _ in news.failures)
        self.lost, self.time = news.lost, self._earlier + news.time
        with contextlib.suppress(OSError):  # nobody may be reading standard error any more
            self.advance(self.done, self.note)
        if self.work.look_in is not None:
            self.work.look_in(news.finished)
        for failure, trace in news.failures:
            facts = {"shard": failure.shard} | ({"try": failure.failures} if failure.counts else {})
            self._report(_described(failure), failure.cause, trace, facts)
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


def _described(failure: Failure) -> str:
    if failure.counts:
        return f"shard {failure.shard} failed (try {failure.failures} of {TRIES})"
    return f"shard {failure.shard} was lost with others, perhaps by their fault, and is made again alone"


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
    ray: Any,
    config: ShardsConfig,
    shards: list[int],
    arguments: dict[str, Any],
    watch: _Watch,
    resources: Mapping[str, int],
    enough: Enough | None,
) -> Outcome:
    """Lets actors, made with these ``arguments``, pull the shards until each is made or given up."""
    coordinator = beside_the_driver(ray, Coordinator).remote(shards, config.shard_deadline, enough)
    actors = min(config.most_actors, len(shards))
    with ray.data.DataContext.current(_data_context(ray, actors)):
        # A slot is an input block for Ray Data to give to an actor, which then works until the job is over.
        # Twice as many as actors: an actor that died after its only row may leave the others without one.
        slots = 2 * actors
        rows = (
            ray.data.from_items([{"slot": slot} for slot in range(slots)], override_num_blocks=slots)
            .map_batches(
                Actor,
                fn_constructor_kwargs={"coordinator": coordinator, **arguments},
                batch_size=1,
                **resources,
                compute=ray.data.ActorPoolStrategy(
                    **pool_sizes(config, len(shards)), max_tasks_in_flight_per_actor=1
                ),
            )
            .iter_rows()
        )
        try:
            with _watched(ray, coordinator, watch):
                next(iter(rows), None)  # the first actor that finds nothing left to do
            return ray.get(coordinator.outcome.remote())
        except ray.exceptions.RayError as error:
            if _is_dead(ray, coordinator):
                died = (
                    f"the process that hands out the shards of {watch.work.what} died {STARTS} times, "
                    "perhaps for want of memory; what is finished stays, and the same command continues from "
                    "it"
                )
                return Outcome(stopped=died, orphaned=True)
            raise UserError(
                f"Ray gave up the actors of {watch.work.what}: {first_message(error)}; what is finished "
                "stays, and the same command continues from it"
            ) from error
        finally:
            _end(ray, coordinator, watch)
            del rows


def _is_dead(ray: Any, coordinator: Any) -> bool:
    try:
        ray.get(coordinator.outcome.remote())
    except ray.exceptions.ActorDiedError:
        return True
    except ray.exceptions.RayError:
        pass
    return False


def _end(ray: Any, coordinator: Any, watch: _Watch) -> None:
    """Ends the actors, which may still be busy: with a shard that another one made first, or for ever."""
    with contextlib.suppress(ray.exceptions.RayError):
        watch.look(ray, coordinator)
    for handle in watch.actors:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(handle)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(coordinator)  # last: an actor that is still starting can't join any more, and ends


def pool_sizes(config: ShardsConfig, shards: int) -> dict[str, int]:
    """Of the pool that makes so many shards, as Ray Data's ``ActorPoolStrategy`` names them.

    It asks for all its actors at once, of which those start that have room. The others wait in Ray, which
    starts one whenever there is room, and whose autoscaler adds nodes for them. Ray Data by itself would ask
    for one more node at a time of work that it sees ended, and an actor's only row ends with the job.
    """
    fewest, most = range_of(config.actors)
    most = min(most, shards)
    return {"min_size": min(fewest, most), "max_size": most, "initial_size": most}


def _data_context(ray: Any, actors: int) -> Any:
    """Ray Data's settings for a fan-out: silent, no time limit but ours."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.enable_rich_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard may take hours; deadlines are the coordinator's
    # With a row on every actor it replaces those that are gone, and it never ends one for having none.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.autoscaling_config.actor_pool_util_downscaling_threshold = 0.0
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
