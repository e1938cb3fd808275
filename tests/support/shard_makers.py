"""Makers for tests of the fan-out.

They compute nothing and can be slow, late, deadly or stuck where a test wants it.

Actors are told apart by the order in which they start: the first one is number 0.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ray_dit.config import ShardsConfig
from ray_dit.errors import CredentialsExpired, UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.writers import HashAlarm
from ray_dit.results import ShardFacts
from ray_dit.runtime.shard_maker import Made, ShardMaker
from ray_dit.runtime.shards import Work, make_shards
from ray_dit.storage.local import TEMP
from ray_dit.storage.open import open_store

SIZE = 10
"""Images that each shard is said to hold."""


@dataclass(frozen=True)
class Build:
    """Builds a maker; ``folder`` is a local one that all actors see."""

    folder: str
    seconds: float = 0.0
    """What a shard takes."""
    slow: float = 1.0
    """How many times longer the first actor takes."""
    together: int = 1
    """Actors that must have started before any of them makes a shard."""
    gate: tuple[int, int] = (0, 0)
    """From this shard on they are computed once so many actors have started."""
    poison: dict[int, str] = field(default_factory=lambda: {})
    """What happens in these shards: raise, alarm, expire, kill, stop, hang, or orphan: the coordinator is
    killed."""
    abreast: bool = False
    """Whether the phases of shards wait for those of others: n + 1 must have been read before the n-th is
    computed, and n + 1 must have begun to be computed before the n-th is stored. Lanes may overtake each
    other, so it is numbers of shards that count and not which."""
    shards: int = 0
    """How many there are."""
    once: bool = False
    """Poison works in the first try only."""
    start: str = ""
    """What happens while an actor starts: kill, raise, or refuse, a user's error; kill-first and late-second:
    in that start."""

    def __call__(self) -> ShardMaker:
        number = _claim(Path(self.folder), "actor")
        if self.start == "raise":
            raise RuntimeError("no memory on the GPU")
        if self.start == "refuse":
            raise UserError("there is no model here")
        if self.start == "late-second" and number == 1:
            time.sleep(8)
        if self.start == "kill" or (self.start == "kill-first" and number == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        while _started(self.folder) < self.together:
            time.sleep(0.05)
        return Maker(self, self.seconds * (self.slow if number == 0 else 1.0))


class Maker:
    """Sleeps, and gives bytes that are a function of the shard."""

    def __init__(self, build: Build, seconds: float) -> None:
        self._build, self._seconds = build, seconds

    def prepare(self, shard: int) -> int:
        """Nothing to read."""
        self._mark("prepare", shard)
        return shard

    def compute(self, inputs: int) -> int:
        """Sleeps, or does what the test wants done to this shard."""
        self._mark("compute", inputs)
        self._await_more("prepare", "compute")
        first, actors = self._build.gate
        while inputs >= first and _started(self._build.folder) < actors:
            time.sleep(0.05)
        what = self._build.poison.get(inputs)
        if what and (_claim(Path(self._build.folder), f"poison{inputs}") == 0 or not self._build.once):
            if what == "raise":
                raise ValueError("not a number")
            if what == "alarm":
                raise HashAlarm("other bytes came out")
            if what == "expire":
                raise CredentialsExpired("no fresh ones came")
            if what == "hang":
                time.sleep(1000)
            if what == "orphan":
                os.kill(_coordinator(), signal.SIGKILL)
                time.sleep(self._seconds)
                return inputs
            os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGSTOP)
            time.sleep(1000)  # the signal may take a moment
        time.sleep(self._seconds)
        return inputs

    def finish(self, outputs: int) -> Made:
        """Bytes that are a function of the shard."""
        self._mark("finish", outputs)
        self._await_more("compute", "finish")
        return Made(f"data/{outputs:05d}", f"shard {outputs}".encode(), ShardFacts(shard=outputs, rows=SIZE))

    def _mark(self, phase: str, shard: int) -> None:
        if self._build.abreast:
            (Path(self._build.folder) / f"{phase}-{shard}").write_text(str(threading.get_ident()))

    def _await_more(self, phase: str, later: str) -> None:
        """Waits until more shards have come to a phase than to the one after it, or all have."""
        folder = Path(self._build.folder)
        while self._build.abreast:
            there, beyond = (len(list(folder.glob(f"{name}-*"))) for name in (phase, later))
            if there > beyond or there == self._build.shards:
                return
            time.sleep(0.01)


def _started(folder: str) -> int:
    """How many actors have."""
    return len(list(Path(folder).glob("actor-*")))


def _coordinator() -> int:
    """The process of this cluster's coordinator."""
    here = psutil.Process(os.getppid())
    return next(
        child.pid for child in here.children() if "::Coordinator" in child.name() + str(child.cmdline())
    )


def _claim(folder: Path, what: str) -> int:
    """0, 1, 2, ... for one caller after the other, in whatever process."""
    folder.mkdir(exist_ok=True, parents=True)
    for number in range(10_000):
        try:
            (folder / f"{what}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError("more claims than any test makes")


def made(folder: Path) -> dict[str, bytes]:
    """The shards that ``run`` has made; what a process that was killed while it wrote has left is none."""
    paths = (folder / "out/data").iterdir()
    return {path.name: path.read_bytes() for path in paths if not path.name.startswith(TEMP)}


def run(
    ray: Any,
    folder: Path,
    num_shards: int,
    *,
    actors: int | str,
    deadline: float | None = None,
    price: float | None = None,
    **build: Any,
) -> Job:
    """Makes shards below ``folder`` and returns the job."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(
        sys.modules[__name__]
    )  # Ray's workers don't have the tests on their path
    config = ShardsConfig(
        output=str(folder / "out"), actors=actors, shard_deadline=deadline, price_per_hour=price
    )
    job = Job.open(open_store(config.output), "generate", {"made": "by a test"})
    work = Work("test", "images", [SIZE] * num_shards)
    maker = Build(str(folder / "claims"), shards=num_shards, **build)
    make_shards(ray, config, job, maker, work, set_up=no_set_up)
    return job


def no_set_up(threads: int) -> None:
    """These makers use no torch, and their actors start much sooner without it."""
