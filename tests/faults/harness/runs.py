"""A disturbed run of a job, of each kind there is: what is planned is a function of (stage, kind, seed).

The same seed plans the same blows and draws the same faults; which process meets which, the scheduler
decides.
"""

import os
import random
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ray_dit.storage.s3 import S3Store
from tests.faults.harness import jobs, oracle
from tests.faults.harness.blows import Blow, Dealer, Victim, draw_blows
from tests.faults.harness.jobs import Stage
from tests.faults.harness.oracle import Contents, Difference
from tests.faults.harness.world import Command, World
from tests.support import seaweed
from tests.support.disks import SmallDisk

RATE = 0.15
"""Part of the requests that meet a fault."""
HANG_SECONDS = 180.0
"""A command that takes so long hangs; undisturbed it takes less than 20."""
MOST_TRIES = 8
"""How often a command is run until it must have succeeded: more than there are blows."""


class Hang(AssertionError):
    """A command that did not end."""


@dataclass
class Tally:
    """What was hit, of one run or of many."""

    runs: int = 0
    commands: int = 0
    """Started ones: a run needs more than one where its command was killed or gave up."""
    requests: int = 0
    blows: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    """Full disks, flipped bits and the like."""
    missed: list[str] = field(default_factory=list)
    """Planned and never dealt."""
    seconds: float = 0.0

    def add(self, other: "Tally") -> None:
        """Counts another run's too."""
        for name in ("runs", "commands", "requests", "seconds", "missed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("blows", "faults", "others"):
            getattr(self, name).update(getattr(other, name))


@dataclass
class Run:
    """One run of ``stage`` with ``seed`` in a world whose undisturbed result is ``whole``."""

    world: World
    stage: Stage
    seed: int
    whole: Contents
    kind: str = "kills"
    tally: Tally = field(default_factory=Tally)

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.kind}-{self.seed}"

    @property
    def uri(self) -> str:
        """Where its result goes in S3."""
        return f"s3://{seaweed.BUCKET}/faults/{self.name}"

    @property
    def chance(self) -> random.Random:
        return random.Random(self.name)

    def words(self, output: str, *more: str) -> list[str]:
        return [*jobs.command(self.stage, self.world.inputs, output, self.world.cluster.address), *more]

    def command(self, *words: str) -> Command:
        self.tally.commands += 1
        return self.world.start(list(words))


def perform(run: Run) -> Tally:
    """Carries the run out and checks it; Difference or Hang, which say what the commands printed."""
    began = time.monotonic()
    run.world.proxy.begin(run.seed, RATE)
    try:
        KINDS[run.kind](run)
    finally:
        run.world.proxy.watch = None
        run.world.proxy.quiesce()
        run.tally.requests = sum(run.world.proxy.requests.values())
        run.tally.faults.update(run.world.proxy.hits)
        run.world.proxy.begin(0, 0.0)
        run.world.heal()
    if run.tally.missed:
        raise Difference(f"never dealt: {run.tally.missed}")
    if left := run.world.await_quiet(30):
        raise Difference(f"{run.name} left processes: {left}")
    run.tally.runs, run.tally.seconds = 1, time.monotonic() - began
    return run.tally


def deal(run: Run, blows: tuple[Blow, ...], commands: list[Command]) -> Dealer:
    """Hands the proxy the blows; ``commands`` are those that a blow to a driver strikes, the oldest first."""

    def victims(kind: Victim) -> list[int]:
        if kind == "driver":
            return [command.pid for command in commands if not command.is_over][:1]
        if kind == "raylet":
            return run.world.raylets()
        return [process.pid for process in run.world.workers()]

    dealer = Dealer(f"/{run.uri.removeprefix('s3://')}/", blows, victims)
    run.world.proxy.watch = dealer
    return dealer


def await_end(run: Run, command: Command, dealer: Dealer | None = None) -> int:
    """Waits until a command has ended, waking sleepers and replacing nodes meanwhile; its exit code."""
    began = time.monotonic()
    while not command.is_over:
        time.sleep(0.05)
        run.world.heal()
        if dealer:
            dealer.wake()
        if time.monotonic() - began > HANG_SECONDS:
            command.process.kill()
            raise Hang(f"{run.name}: no end after {HANG_SECONDS:.0f} s; it printed:\n{command.printed()}")
    if command.code is None:
        raise RuntimeError("a process that has ended has an exit code")
    if "Traceback" in command.printed():
        raise Difference(f"{run.name}: a traceback instead of a sentence:\n{command.printed()}")
    return command.code


def finish(
    run: Run, output: str, dealer: Dealer | None = None, commands: list[Command] | None = None
) -> None:
    """Runs the command until it succeeds, as a user would; then all must be as undisturbed."""
    commands = [] if commands is None else commands
    for _ in range(MOST_TRIES):
        commands.append(run.command(*run.words(output)))
        if await_end(run, commands[-1], dealer) == 0:
            break
    else:
        raise Difference(
            f"{run.name}: {MOST_TRIES} tries failed; the last printed:\n{commands[-1].printed()}"
        )
    if dealer:
        dealer.wake(now=True)
        run.tally.blows.update(dealer.hits)
        run.tally.missed += [f"{run.name}: {blow}" for blow in dealer.left]
    run.world.proxy.quiesce()
    oracle.check(run.stage, output, run.whole)


def kills(run: Run) -> None:
    """Several blows, and faulty requests all the time."""
    commands: list[Command] = []
    dealer = deal(run, draw_blows(run.chance, len(run.whole)), commands)
    finish(run, run.uri, dealer, commands)


def two_drivers(run: Run) -> None:
    """Two commands for one folder at the same time, and a blow or two."""
    blows = draw_blows(run.chance, len(run.whole), most=2)
    first, second = run.command(*run.words(run.uri)), run.command(*run.words(run.uri))
    commands = [first, second]
    dealer = deal(run, blows, commands)
    for command in (first, second):
        await_end(run, command, dealer)
    finish(run, run.uri, dealer, commands)
    run.tally.others["two drivers"] += 1


def late_driver(run: Run) -> None:
    """A driver stopped at an event wakes when another one has finished its job: nothing changes any more."""
    event = run.chance.randint(1, len(run.whole) - 1)
    commands: list[Command] = []
    dealer = deal(run, (Blow(event, True, "driver", signal.SIGSTOP),), commands)
    for _ in range(MOST_TRIES):  # one may give up for its faulty requests before it is struck
        first = run.command(*run.words(run.uri))
        commands[:] = [first]
        while not dealer.asleep and not first.is_over:
            time.sleep(0.02)
        if dealer.asleep or first.code == 0:
            break
    finish(run, run.uri)
    before = versions(run.uri)
    dealer.wake(now=True)
    await_end(run, first, dealer)
    run.tally.blows.update(dealer.hits)
    run.tally.missed += [f"{run.name}: {blow}" for blow in dealer.left]
    if versions(run.uri) != before:
        raise Difference(f"{run.name}: a driver that woke too late changed the finished job")
    oracle.check(run.stage, run.uri, run.whole)
    run.tally.others["driver woken after the end"] += 1


def versions(uri: str) -> dict[str, str | None]:
    """Every object of a job with the token of the call that wrote it: equal bytes have equal ETags in S3."""
    store = S3Store(uri)
    keys = [info.key for info in store.list() if "_runs" not in info.key.split("/")]
    return {key: store._head(key)["Metadata"].get("writer") for key in keys}


def full_disk(run: Run) -> None:
    """A disk with room for a part of the job; then it is enlarged."""
    with SmallDisk(run.world.folder / run.name, pages=run.chance.randint(2, len(run.whole))) as disk:
        output = str(disk.folder / "out")
        refused(run, output, "does not fit on its disk")
        run.tally.others["disk full"] += 1
        disk.enlarge()
        finish(run, output)


def read_only(run: Run) -> None:
    """A folder that cannot be written, then can."""
    with SmallDisk(run.world.folder / run.name, pages=1 << 14) as disk:
        output = str(disk.folder / "out")
        disk.set_read_only(True)
        refused(run, output, "is not permitted|Read-only|read-only")
        run.tally.others["read-only folder"] += 1
        disk.set_read_only(False)
        finish(run, output)


def refused(run: Run, output: str, pattern: str) -> None:
    """Runs a command that must fail with a sentence of which ``pattern`` is a part."""
    command = run.command(*run.words(output))
    code = await_end(run, command)
    if code == 0 or not re.search(pattern, command.printed()):
        raise Difference(f"{run.name}: exit code {code} and no {pattern!r} in:\n{command.printed()}")


def flipped_object(run: Run) -> None:
    """One bit of a finished job's object is flipped: verify names it, and it is put back."""
    output = str(run.world.folder / run.name)
    finish(run, output)
    keys = sorted(key for key in run.whole if key.endswith(".parquet") and not key.startswith("plan"))
    key = run.chance.choice(keys or sorted(key for key in run.whole if key.endswith(".safetensors")))
    flip_bit(Path(output, key), run.chance)
    run.tally.others["flipped bit in an object"] += 1
    verify = run.command("verify", output)
    if await_end(run, verify) == 0 or key not in verify.printed():
        raise Difference(f"{run.name}: verify does not name {key}:\n{verify.printed()}")
    if run.stage == "train":  # what cannot be made again one by one is made again as a whole
        return
    repair = run.command(*run.words(output), "--repair")
    if await_end(run, repair) != 0:
        raise Difference(f"{run.name}: {key} was not repaired:\n{repair.printed()}")
    oracle.check(run.stage, output, run.whole)


def flipped_checkpoint(run: Run) -> None:
    """A training is killed, and its newest checkpoint damaged: no other bytes come of it.

    It falls back to the checkpoint before, or names the damaged one; that is then removed.
    """
    commands = [run.command(*run.words(run.uri))]
    blow = Blow(1, True, "driver", signal.SIGKILL, key="checkpoints/step-00000010")
    dealer = deal(run, (blow,), commands)
    await_end(run, commands[0], dealer)
    run.tally.blows.update(dealer.hits)
    run.world.await_quiet(30)
    store = S3Store(run.uri)
    newest = max((info.key for info in store.list("checkpoints/")), default=None)
    if newest is not None:
        damage_object(store, newest, run.chance)
        run.tally.others["flipped bit in a checkpoint"] += 1
        again = run.command(*run.words(run.uri))
        if await_end(run, again) != 0:
            if newest not in again.printed():
                raise Difference(f"{run.name}: {newest} is not named:\n{again.printed()}")
            store.delete(newest)
    finish(run, run.uri)


def damage_object(store: S3Store, key: str, chance: random.Random) -> None:
    """Flips a bit of an object in storage, where its metadata goes on saying what was written."""
    info = store.head(key)
    data = bytearray(store.get(key))
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    url = f"{os.environ['AWS_ENDPOINT_URL']}/{store.uri.removeprefix('s3://')}/{key}"
    headers = {"x-amz-meta-sha256": (info.sha256 if info else None) or ""}
    urllib.request.urlopen(
        urllib.request.Request(url, bytes(data), headers, method="PUT"), timeout=30
    ).close()


def flip_bit(path: Path, chance: random.Random) -> None:
    """Flips a bit of a file in place."""
    with open(path, "r+b") as file:
        place = chance.randrange(path.stat().st_size)
        file.seek(place)
        byte = file.read(1)[0] ^ (1 << chance.randrange(8))
        file.seek(place)
        file.write(bytes([byte]))


def flipped_cache(run: Run) -> None:
    """A bit of the local copy of the latents is flipped, or of their index: no other model comes of it."""
    finish(run, f"{run.uri}/before")
    there = run.world.cache.glob("latents/*/*")
    flip_bit(run.chance.choice(sorted(path for path in there if path.stat().st_size)), run.chance)  # no lock
    run.tally.others["flipped bit in the cache"] += 1
    finish(run, f"{run.uri}/after")


KINDS: dict[str, Callable[[Run], None]] = {
    "kills": kills,
    "two-drivers": two_drivers,
    "late-driver": late_driver,
    "full-disk": full_disk,
    "read-only": read_only,
    "flipped-object": flipped_object,
    "flipped-checkpoint": flipped_checkpoint,
    "flipped-cache": flipped_cache,
}
KINDS_OF: dict[Stage, tuple[str, ...]] = {
    "encode": ("two-drivers", "late-driver", "full-disk", "read-only", "flipped-object"),
    "generate": ("two-drivers", "late-driver", "full-disk", "read-only", "flipped-object"),
    "train": (
        "two-drivers",
        "late-driver",
        "flipped-checkpoint",
        "flipped-cache",
        "full-disk",
        "flipped-object",
    ),
}
"""Beside ``kills``, which every stage has."""
