"""``python -m tests.faults.harness --seed 1 --minutes 30``: as many seeded runs as fit, and a table of them.

``--only STAGE-KIND-SEED`` does a run again, as a failure's message says.
"""

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Iterator
from typing import cast

from tests.faults.harness import jobs
from tests.faults.harness.campaign import Failure, campaign, table
from tests.faults.harness.runs import KINDS_OF


def plans(seed: int) -> Iterator[tuple[jobs.Stage, str, int]]:
    """Stage, kind and seed of every run, without end: of ten rounds, three of kills lack a training."""
    others = {stage: itertools.cycle(kinds) for stage, kinds in KINDS_OF.items()}
    for number in itertools.count(seed * 1000):
        for stage in jobs.STAGES:
            if stage != "train" or number % 10 in (0, 3, 6):
                yield stage, "kills" if number % 5 else next(others[stage]), number


def parsed(name: str) -> tuple[jobs.Stage, str, int]:
    """The inverse of a run's name."""
    stage, rest = name.split("-", 1)
    kind, _, seed = rest.rpartition("-")
    return cast("jobs.Stage", stage), kind, int(seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.harness", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, help="at most so many: one encode and one generate each")
    parser.add_argument("--only", help="these runs, such as encode-kills-1003,train-kills-1006")
    parser.add_argument("--stages", default=",".join(jobs.STAGES), help="of these stages only")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended all the same
    stages = [stage for stage in jobs.STAGES if stage in arguments.stages.split(",")]
    wanted = plans(arguments.seed)
    if arguments.only:
        wanted = [parsed(name) for name in arguments.only.split(",")]
        stages = [stage for stage in jobs.STAGES if any(stage == plan[0] for plan in wanted)]
    end = arguments.seed * 1000 + (arguments.rounds or 1000)
    wanted = itertools.takewhile(lambda plan: arguments.only or plan[2] < end, wanted)
    chosen = (plan for plan in wanted if plan[0] in stages)
    until = time.monotonic() + 60 * arguments.minutes
    failures: list[Failure] = []
    tallies = campaign(chosen, stages, until=until, failures=failures)
    print(table(tallies, failures))
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
