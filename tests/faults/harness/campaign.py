"""Many runs in one world, and what they hit, as a table."""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ray_dit.storage.s3 import S3Store
from tests.faults.harness import jobs, oracle
from tests.faults.harness.jobs import Stage
from tests.faults.harness.oracle import Contents
from tests.faults.harness.runs import Hang, Run, Tally, await_end, perform
from tests.faults.harness.world import World
from tests.support import seaweed
from tests.support.disks import NoDisk


@dataclass(frozen=True)
class Failure:
    """A run that failed, and how to have it again."""

    run: str
    hang: bool
    what: str

    def __str__(self) -> str:
        return f"{self.run}: {self.what}\nagain: .venv/bin/python -m tests.faults.harness --only {self.run}"


def prepare(world: World, stages: Iterable[Stage]) -> dict[Stage, Contents]:
    """Puts the inputs in place and runs every stage undisturbed; its objects by stage."""
    folder = world.folder / "inputs"
    jobs.write_inputs(folder)
    jobs.upload(folder, S3Store(world.inputs))
    whole: dict[Stage, Contents] = {}
    wanted = set(stages)
    for stage in jobs.STAGES:
        if stage not in wanted and not (stage == "encode" and "train" in wanted):
            continue
        output = f"s3://{seaweed.BUCKET}/faults/whole-{stage}"
        run = Run(world, stage, 0, {}, "whole")
        world.proxy.begin(0, 0.0)
        if await_end(run, command := run.command(*run.words(output))) != 0:
            raise RuntimeError(f"the undisturbed {stage} failed:\n{command.printed()}")
        whole[stage] = oracle.contents(S3Store(output))
        if world.proxy.requests["PUT"] < len(whole[stage]):
            raise RuntimeError(f"{stage} wrote objects that did not go by way of the proxy")
        if stage == "encode":
            world.prepare(output)
    return whole


def campaign(
    plans: Iterable[tuple[Stage, str, int]],
    stages: Iterable[Stage],
    *,
    until: float,
    failures: list[Failure],
) -> dict[Stage, Tally]:
    """Runs the plans, all of these stages, until time is up (``time.monotonic``); tallies by stage.

    ``failures`` are gathered as they come.
    """
    tallies: dict[Stage, Tally] = {}
    with World() as world:
        whole = prepare(world, stages)
        for stage, kind, seed in plans:
            if time.monotonic() > until:
                break
            run = Run(world, stage, seed, whole[stage], kind)
            try:
                tally = perform(run)
            except NoDisk as error:
                tally = Tally(others=Counter({f"{kind} left out: {error}": 1}))
            except Exception as error:
                text = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
                failures.append(Failure(run.name, isinstance(error, Hang), text))
                print(failures[-1], file=sys.stderr, flush=True)
                tally = run.tally
            tallies.setdefault(stage, Tally()).add(tally)
            print(f"{run.name}: {tally.seconds:.1f} s, {line(tally)}", flush=True)
    return tallies


def line(tally: Tally) -> str:
    """One run in a line."""
    hit = ", ".join(f"{count} x {what}" for what, count in (tally.blows + tally.others).items())
    faults = sum(tally.faults.values())
    return f"{tally.commands} commands, {tally.requests} requests, {faults} faulty; {hit or 'no blow'}"


def table(tallies: dict[Stage, Tally], failures: list[Failure]) -> str:
    """Runs, requests and hits of each kind by stage."""
    columns = list(tallies)
    rows: dict[str, list[object]] = {
        "runs": [tallies[stage].runs for stage in columns],
        "seconds per run": [
            round(tallies[stage].seconds / max(1, tallies[stage].runs), 1) for stage in columns
        ],
        "commands": [tallies[stage].commands for stage in columns],
        "blows": [sum(tallies[stage].blows.values()) for stage in columns],
        "planned, never dealt": [len(tallies[stage].missed) for stage in columns],
        "requests": [tallies[stage].requests for stage in columns],
        "faulty requests": [sum(tallies[stage].faults.values()) for stage in columns],
        "differences": [count(failures, stage, hang=False) for stage in columns],
        "hangs": [count(failures, stage, hang=True) for stage in columns],
    }
    for name in ("blows", "others", "faults"):
        for what in sorted({what for stage in columns for what in getattr(tallies[stage], name)}):
            rows[f"  {what}"] = [getattr(tallies[stage], name)[what] for stage in columns]
    head = f"{'':32}" + "".join(f"{stage:>12}" for stage in columns)
    return "\n".join(
        [head, *(f"{name:32}" + "".join(f"{v!s:>12}" for v in row) for name, row in rows.items())]
    )


def count(failures: list[Failure], stage: Stage, *, hang: bool) -> int:
    """Failures of a stage."""
    return sum(failure.run.startswith(f"{stage}-") and failure.hang == hang for failure in failures)
