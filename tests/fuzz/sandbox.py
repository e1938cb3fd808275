"""Calls a reader in a process of its own, which may hang, crash or eat memory without harm to the tests.

One process serves many calls; memory is measured as what a call adds to the most the process ever held.
"""

import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MEMORY = 8 << 30
"""Address space of the process, in bytes: libraries reserve much that they never touch."""

BUSY = 12
"""How many times longer than on a processor of its own a call may take before it is taken to hang."""


@dataclass(frozen=True)
class Verdict:
    """How a call ended: read, refused by one of the errors allowed, or foreign (another one), slow, dead."""

    kind: str
    text: str = ""
    megabytes: float = 0.0
    """How much more memory it took at its peak than was in use before."""
    seconds: float = 0.0
    """Of a processor: the machine may be busy."""


class Sandbox:
    """A context; ``reader`` takes bytes and may raise ``allowed``."""

    def __init__(
        self,
        reader: Callable[[bytes], object],
        allowed: tuple[type[BaseException], ...],
        seconds: float = 10.0,
    ) -> None:
        self._reader, self._allowed, self._seconds = reader, allowed, seconds
        self._process: Any = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, data: bytes) -> Verdict:
        """Calls the reader with these bytes."""
        if self._process is None:
            self._start()
        self._pipe.send_bytes(data)
        if not self._pipe.poll(self._seconds * BUSY):
            self._end()
            return Verdict("slow", f"no end after {self._seconds * BUSY:g} s")
        try:
            verdict: Verdict = self._pipe.recv()
            if verdict.seconds > self._seconds:
                return replace(verdict, kind="slow", text=f"took {verdict.seconds:.1f} s of a processor")
            return verdict
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._end()
            return Verdict("dead", f"the process ended with {code}")

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._reader, self._allowed), daemon=True
        )
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any, reader: Callable[[bytes], object], allowed: tuple[type[BaseException], ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        before = _memory("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        kind, text, begun = "read", "", time.process_time()
        try:
            reader(data)
        except allowed as error:
            kind, text = "refused", str(error)
        except BaseException as error:
            kind, text = "foreign", f"{type(error).__name__}: {str(error)[:300]}"
        seconds = time.process_time() - begun
        pipe.send(Verdict(kind, text, max(0.0, _memory("VmHWM") - before), seconds))


def _memory(field: str) -> float:
    """Megabytes of this process by the kernel's count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
