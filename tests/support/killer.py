"""Signals at counted events: a process that kills or stops itself, or is killed, at the n-th event of a kind.

``arm`` counts the file system's events in this process (Python's audit events: no patches). ``SignalAt``
counts the requests that a FaultProxy sees. Both are exact, so that a test can enumerate every place to die.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.proxy import Seen

AUDITED = ("os.mkdir", "os.link", "os.rename", "os.remove", "open")
"""What changes a folder; ``open`` only for writing."""


def arm(nth: int, number: int, *, under: str) -> Callable[[], int]:
    """From now on this process gets signal ``number`` just before its ``nth`` change (from 1).

    What changes the folder ``under`` is counted; the function returned says how many changes there were.
    ``nth`` 0 only counts.
    """
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in AUDITED or not str(arguments[0]).startswith(under):
            return
        if event == "open" and not (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        seen += 1
        if seen == nth:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return lambda: seen


@dataclass
class SignalAt:
    """A proxy's watcher: sends the signal at the ``nth`` request (from 1) of the method.

    It does so before or after the service has done what was asked. ``pid`` is set once the process runs.
    """

    nth: int
    after: bool
    method: str = "PUT"
    number: int = signal.SIGKILL
    pid: int = 0
    sent: bool = field(default=False, init=False)

    def __call__(self, seen: Seen) -> None:
        if (seen.method, seen.number, seen.forwarded) == (self.method, self.nth, self.after) and self.pid:
            os.kill(self.pid, self.number)
            self.sent = True


def process_at(port: int) -> int | None:
    """The process with the TCP connection whose own end is ``port`` of 127.0.0.1; None if it has gone."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    inode = next((line[9] for line in lines if line[1] == f"0100007F:{port:04X}"), None)
    if inode in (None, "0"):
        return None
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(path) == f"socket:[{inode}]" for path in folder.iterdir()):
                return int(folder.parent.name)
    return None
