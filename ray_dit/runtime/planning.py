"""What a job will make, read and take, told before it is run: one mechanism for all stages.

A stage says what it counts and hands over a small piece of its work. That piece is run here as the job would
run it, by the same actors or workers at the same time, into a store that keeps nothing; its times and bytes
are carried over to the whole. Where the cluster lacks the device, figures rest on an assumption, and say so.
"""

import heapq
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from pydantic import BaseModel, ConfigDict

from ray_dit.config import ShardsConfig, TrainingConfig
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_prefix
from ray_dit.runtime.session import cpus_for, ray_session
from ray_dit.runtime.shard_maker import Made, ShardMaker, shard_name
from ray_dit.runtime.shards import Work, make_shards
from ray_dit.runtime.training.checkpointer import checkpoints_due, checkpoints_kept
from ray_dit.runtime.training.launch import run_training
from ray_dit.runtime.training.task import Task
from ray_dit.runtime.training.trial import TimedTask, TrainingTimes
from ray_dit.storage.open import open_store
from ray_dit.storage.scratch import ScratchStore
from ray_dit.storage.store import Store

TRIAL_ACTORS = 8
"""Actors that take part in a trial, at most; more of them are taken to be as fast."""
SHARDS_PER_ACTOR = 4
"""Trial shards per actor; the first is the warm-up."""
READY_SECONDS = 120.0
"""How long a trial's actors wait for each other, so that they measure what they take from each other."""
STEP_SECONDS = 10.0
"""About how long the steps of a trial of training shall take."""
CPU_FLOPS = 3e10
"""Operations per second and thread by which the number of those steps is chosen; not used for any figure."""
ACCELERATOR_FLOPS = {"float32": 2.5e13, "bfloat16": 3.5e14, "float16": 3.5e14}
"""What an accelerator that is not here is taken to do per second: an H100 at 40 % of its peak."""


class Plan(BaseModel):
    """What a job will make, read and take."""

    model_config = ConfigDict(frozen=True)

    stage: str
    output: str
    counts: dict[str, int]
    """What will be made, exactly; names in the plural."""
    done: dict[str, int]
    """How much of that is in the output folder already."""
    network_evaluations: int
    """Rows that pass the network, forwards; an unconditional twin is a row of its own."""
    bytes_in: int
    """Of the inputs in storage."""
    bytes_out: int
    """Of the objects there will be in the end."""
    workers: int
    """Actors, as many as the cluster has room for now, or training workers."""
    seconds: dict[str, float]
    """What each part of the rest of the job will take on this cluster, one after the other."""
    total_seconds: float
    basis: str
    """What times and bytes rest on: a trial, or an assumption."""
    memory: dict[str, int] = {}
    """Of a training: bytes that each part takes in a worker, and where that was measured, the most it had."""
    cost: float | None = None
    """For the total time on all workers, in the unit of the price."""

    def priced(self, per_hour: float | None) -> "Plan":
        """With the cost at this price per worker and hour; without where there is none."""
        if per_hour is None:
            return self
        return self.model_copy(update={"cost": self.total_seconds / 3600 * self.workers * per_hour})


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a stage knows of its work without having done any; of the whole job."""

    network_evaluations: int
    bytes_in: int
    flops: float
    """Floating-point operations: what the time is where nothing can be measured."""
    bytes_out: float
    """Likewise for the bytes of what the trial measures."""
    other_bytes: int = 0
    """Of objects that are no shards."""
    precision: str = "float32"
    left_out: str = ""
    """What these two leave out, or take for granted."""
    memory: Mapping[str, int] = field(default_factory=dict[str, int])
    """Of a training: see ``Plan``."""


@dataclass(frozen=True)
class Trial:
    """A small piece of a fan-out: shards of equal size."""

    build: Callable[[], ShardMaker]
    size: int
    """Units in each shard."""
    shards: int
    """How many there are, at most."""
    equal_bytes: bool = False
    """Whether shards are equally large, whatever the number of units in them."""


@dataclass(frozen=True)
class ShardTimes:
    """What a trial of a fan-out measured."""

    start: float
    """Seconds from the call until work began."""
    unit: float
    """Seconds per unit in one actor, while the others worked too."""
    shard_bytes: float
    shards: int
    actors: int


def plan_shards(
    config: ShardsConfig,
    work: Work,
    trial: Trial,
    known: Known,
    *,
    begun: float,
    gpus: int = 0,
    loads: Sequence[int] | None = None,
    before: Callable[[Any], tuple[dict[str, float], int]] | None = None,
) -> Plan:
    """The plan of a fan-out; runs ``trial`` on the actors the job would have.

    Args:
        config: the job's.
        work: what the job makes.
        trial: a piece of it.
        known: what needs no trial, and what the plan rests on where the cluster lacks the device.
        begun: when starting began, in ``time.monotonic()``.
        gpus: those of each actor.
        loads: how many units' time each shard takes; by default as many as it holds.
        before: given Ray, tries what is done ahead of the shards: its seconds by name, and its bytes.
    """
    store = open_store(config.output)
    done = _done(store, work)
    units = sum(work.sizes)
    units_left = sum(size for shard, size in enumerate(work.sizes) if shard not in done)
    shards_left = len(work.sizes) - len(done)
    workers = most = min(config.most_actors, max(shards_left, 1))
    common: dict[str, Any] = {
        "stage": work.what,
        "output": config.output,
        "counts": {work.unit: units, "shards": len(work.sizes)},
        "done": {work.unit: units - units_left, "shards": len(done)},
        "network_evaluations": known.network_evaluations,
        "bytes_in": known.bytes_in,
        "workers": workers,
    }
    if _is_finished(store, work.generation):
        return _finished(common, store).priced(config.price_per_hour)
    with ray_session(config) as ray:
        if gpus and not _gpus(ray):
            share = units_left / max(units, 1)
            return assumed(common, known, share=share, workers=workers).priced(config.price_per_hour)
        common["workers"] = workers = min(workers, _room(ray, config, gpus))
        ready = time.monotonic()
        earlier, earlier_bytes = before(ray) if before is not None else ({}, 0)
        begun += time.monotonic() - ready  # that has a part of its own
        times = try_shards(ray, config, work, trial, begun=begun, gpus=gpus)
    busiest = makespan(work.sizes if loads is None else loads, done, workers)
    seconds = {"starting": times.start, **earlier, "shards": busiest * times.unit}
    pieces = len(work.sizes) if trial.equal_bytes else units / trial.size
    tried = f"{times.shards} shards of {trial.size} {work.unit} on {times.actors} actors"
    basis = f"measured: {tried} of this cluster"
    if workers < most and config.address != "local":
        basis += f", which has room for {workers} of {most} now; with more it takes less time"
    bytes_out = round(pieces * times.shard_bytes) + earlier_bytes + known.other_bytes
    return summed(common, seconds, bytes_out=bytes_out, basis=basis).priced(config.price_per_hour)


def plan_training(
    config: TrainingConfig,
    what: str,
    make_task: Callable[[Any, Job], Task[Any]],
    known: Known,
    *,
    begun: float,
    generation: int = 0,
) -> Plan:
    """The plan of a training, of this generation of its job.

    Trains the task of ``make_task(config, job)`` for a few steps on the job's workers.
    """
    samples = config.steps * config.batch_size
    store = open_store(config.output)
    finished, checkpoints = _is_finished(store, generation), checkpoints_due(config, config.steps)
    there = [checkpoint_steps(store, generation_prefix(number)) for number in range(generation + 1)]
    steps_done = config.steps if finished else max(chain(*there), default=0)
    left = config.steps - steps_done
    common: dict[str, Any] = {
        "stage": what,
        "output": config.output,
        "counts": {"steps": config.steps, "samples": samples, "checkpoints": checkpoints},
        "done": {
            "steps": steps_done,
            "samples": steps_done * config.batch_size,
            "checkpoints": checkpoints_due(config, steps_done),
        },
        "network_evaluations": known.network_evaluations,
        "bytes_in": known.bytes_in,
        "workers": config.working(config.worker_range[1]),
        "memory": dict(known.memory),
    }
    if finished:
        return _finished(common, store)
    with ray_session(config) as ray:
        fewest, most = config.worker_range
        if config.use_gpu and _gpus(ray) < fewest:
            return assumed(common, known, share=left / config.steps, workers=common["workers"])
        room = int(_gpus(ray) if config.use_gpu else ray.cluster_resources().get("CPU", 0) // config.threads)
        common["workers"] = workers = config.working(max(fewest, min(most, room)))
        flops_per_step = known.flops / config.steps / workers
        steps = min(max(round(STEP_SECONDS * CPU_FLOPS * config.threads / flops_per_step), 6), 60)
        times, sizes, start = try_training(ray, config, what, make_task, steps=steps, begun=begun)
    common["memory"] |= {} if times.memory is None else {"measured": times.memory}
    due = checkpoints - checkpoints_due(config, steps_done)
    seconds = {
        "starting": start,
        "steps": left * times.step,
        "checkpoints": due * times.checkpoint,
        "finishing": times.finish,
    }
    kept = {"/checkpoints/": checkpoints_kept(config), "/samples/": checkpoints}
    bytes_out = sum(
        size * next((count for part, count in kept.items() if part in key), 1)
        for key, size in sizes.items()
        if "/_" not in key
    )
    basis = f"measured: {steps} steps, a checkpoint and the end on {workers} workers here"
    return summed(common, seconds, bytes_out=bytes_out, basis=basis)


def try_shards(
    ray: Any, config: ShardsConfig, work: Work, trial: Trial, *, begun: float, gpus: int
) -> ShardTimes:
    """Makes the trial's shards as the job would and says how long they took.

    ``begun`` is when starting began.
    """
    actors = min(config.most_actors, trial.shards, TRIAL_ACTORS, _room(ray, config, gpus))
    count = min(actors * SHARDS_PER_ACTOR, trial.shards)
    tally = ray.remote(num_cpus=0)(_Tally).remote(actors)
    small = config.model_copy(update={"actors": actors})
    trial_work = replace(
        work,
        what=f"{work.what}, trial",
        sizes=[trial.size] * count,
        first=0,
        generation=0,
        shard_bytes=work.shard_bytes * trial.size // max(work.sizes),
        look_in=None,
    )
    make_shards(ray, small, _scratch_job(work.what), _TimedBuild(trial.build, tally), trial_work, gpus=gpus)
    whole = time.monotonic() - begun
    taken: dict[str, list[tuple[float, int]]] = ray.get(tally.told.remote())
    later = [seconds for shards in taken.values() for seconds, _ in shards[1:]]
    first = [shards[0][0] for shards in taken.values()]
    seconds = statistics.median(later or first)
    busy = max(len(shards) for shards in taken.values()) * seconds
    sizes = [size for shards in taken.values() for _, size in shards]
    return ShardTimes(
        start=max(whole - busy, 0.0),
        unit=seconds / trial.size,
        shard_bytes=statistics.fmean(sizes),
        shards=count,
        actors=len(taken),
    )


def try_training(
    ray: Any,
    config: TrainingConfig,
    what: str,
    make_task: Callable[[Any, Job], Task[Any]],
    *,
    steps: int,
    begun: float,
) -> tuple[TrainingTimes, Mapping[str, int], float]:
    """Trains for ``steps`` steps; what the first worker measured, bytes by key, and seconds of starting."""
    small = config.model_copy(update={"steps": steps, "checkpoint_every": steps, "tensorboard": None})
    job = _scratch_job(what)
    tally = ray.remote(num_cpus=0)(_Tally).remote(0)
    task = TimedTask(make_task(small, job), tell=_Tell(tally))
    run_training(ray, small, job, task, f"{what}, trial")
    whole = time.monotonic() - begun
    ((times, sizes),) = ray.get(tally.told.remote())["training"]
    return times, sizes, max(whole - times.working, 0.0)


class _Tally:
    """What the processes of a trial tell what they measured, and by which its actors wait for each other."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._ready: set[str] = set()
        self._told: dict[str, list[Any]] = {}

    def arrive(self, who: str) -> bool:
        """Whether all are ready."""
        self._ready.add(who)
        return len(self._ready) >= self._expected

    def tell(self, who: str, what: Any) -> None:
        self._told.setdefault(who, []).append(what)

    def told(self) -> dict[str, list[Any]]:
        return self._told


@dataclass(frozen=True)
class _Tell:
    """What a timed task calls."""

    tally: Any

    def __call__(self, times: TrainingTimes, sizes: Mapping[str, int]) -> None:
        import ray

        ray.get(self.tally.tell.remote("training", (times, dict(sizes))))


@dataclass(frozen=True)
class _TimedBuild:
    """Makes the maker in its actor, then waits for the other actors."""

    build: Callable[[], ShardMaker]
    tally: Any

    def __call__(self) -> ShardMaker:
        import ray

        maker, who = self.build(), uuid.uuid4().hex
        end = time.monotonic() + READY_SECONDS
        while not ray.get(self.tally.arrive.remote(who)) and time.monotonic() < end:
            time.sleep(0.05)
        return _TimedMaker(maker, self.tally, who)


@dataclass
class _TimedMaker:
    """Does what its maker does and tells how long after the one before each shard was made, and its size.

    Some are under way at once; the first one's time counts from the beginning.
    """

    maker: ShardMaker
    tally: Any
    who: str
    _before: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, shard: int) -> Any:
        return self.maker.prepare(shard)

    def compute(self, inputs: Any) -> Any:
        return self.maker.compute(inputs)

    def finish(self, outputs: Any) -> Made:
        made = self.maker.finish(outputs)
        with self._lock:
            now = time.monotonic()
            seconds, self._before = now - self._before, now
            self.tally.tell.remote(self.who, (seconds, len(made.data)))
        return made


def _scratch_job(stage: str) -> Job:
    # Ray Train keeps its own notes where the job is: by this scheme in each process's memory
    return Job.open(ScratchStore("memory://trial"), stage, {"made": "for a plan"})


def stored_bytes(store: Store) -> int:
    """Bytes of all objects below a store."""
    return sum(max(info.size, 0) for info in store.list())  # some listings tell no sizes


def _gpus(ray: Any) -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _room(ray: Any, config: ShardsConfig, gpus: int) -> int:
    """How many of the actors the cluster has room for now; at least one, whose start says what is missing."""
    each = cpus_for(ray, threads=config.threads, own_threads=config.own_threads)
    cpus = int(ray.cluster_resources().get("CPU", 0)) // each
    return max(min(cpus, _gpus(ray) // gpus) if gpus else cpus, 1)


def _done(store: Store, work: Work) -> set[int]:
    """Places of the shards, in the order of their numbers, whose markers are there."""
    there = set(Job(store, "", "", work.generation).names())
    return {place for place, shard in enumerate(work.numbers) if shard_name(shard) in there}


def _is_finished(store: Store, generation: int) -> bool:
    return Job(store, "", "", generation).is_finished()


def _finished(common: dict[str, Any], store: Store) -> Plan:
    own = ("_", "manifest")  # what the ledger writes is no result
    there = sum(
        info.size for info in store.list() if not any(part.startswith(own) for part in info.key.split("/"))
    )
    return summed(common, {}, bytes_out=there, basis="finished: nothing is left to be done")


def makespan(sizes: Sequence[int], done: set[int], workers: int) -> int:
    """Units that the busiest of the workers makes, each taking the next shard when it is free."""
    loads = [0] * workers  # a heap: the least first
    for shard, size in enumerate(sizes):
        if shard not in done:
            heapq.heapreplace(loads, loads[0] + size)
    return max(loads)


def assumed(common: dict[str, Any], known: Known, *, share: float, workers: int) -> Plan:
    """The plan where nothing can be measured; ``share`` of the job is left."""
    speed = ACCELERATOR_FLOPS[known.precision]
    seconds = {"work": share * known.flops / speed / workers}
    note = f"; {known.left_out}" if known.left_out else ""
    basis = (
        f"assumed: the GPUs are not here, and one is taken to do {speed / 1e12:g} TFLOP/s in "
        f"{known.precision}, which is 40 % of an H100's peak; starting is not counted{note}"
    )
    return summed(common, seconds, bytes_out=round(known.bytes_out) + known.other_bytes, basis=basis)


def summed(common: dict[str, Any], seconds: dict[str, float], *, bytes_out: int, basis: str) -> Plan:
    """The plan of these parts."""
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    return Plan(
        **common,
        seconds=seconds,
        total_seconds=round(sum(seconds.values()), 3),
        bytes_out=bytes_out,
        basis=basis,
    )
