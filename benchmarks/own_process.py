"""Calls in processes of their own, which take turns, each set up as those who make such calls have it.

Knows nothing of what is called.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.common import timed


@dataclass(frozen=True)
class Contender:
    """A call that ``build`` makes in its own process, once ``set_up`` was called; both can be pickled."""

    build: Callable[[], Callable[[], object]]
    set_up: Callable[[], None]


@contextmanager
def in_own_processes(
    contenders: Mapping[str, Contender], *, repeats: int
) -> Iterator[dict[str, Callable[[int], float]]]:
    """Measurements for ``in_turns``: the median of ``repeats`` calls in seconds, after one that warms up.

    A process whose turn it isn't waits. One that fails ends the benchmark, with its error on stderr.
    """
    spawn = multiprocessing.get_context("spawn")
    processes: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    try:
        for name, contender in contenders.items():
            ends[name], theirs = spawn.Pipe()
            processes[name] = spawn.Process(target=_contend, args=(contender, repeats, theirs), daemon=True)
            processes[name].start()
            theirs.close()
            ends[name].recv()  # it is ready; one after the other, as beginning takes all processors

        def measured(name: str) -> Callable[[int], float]:
            def measure(turn: int) -> float:
                ends[name].send(turn)
                return ends[name].recv()

            return measure

        yield {name: measured(name) for name in contenders}
    finally:
        for end in ends.values():
            end.close()
        for process in processes.values():
            process.join()


def _contend(contender: Contender, repeats: int, pipe: Any) -> None:
    contender.set_up()
    call = contender.build()
    timed(call, repeats=1)
    pipe.send(None)
    with suppress(EOFError):  # the end
        while True:
            pipe.recv()
            pipe.send(statistics.median(timed(call, repeats=repeats, warm_up=1)))
