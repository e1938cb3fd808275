"""Memory and processor time of a driver and of Ray's processes below it, while it runs."""

import subprocess
import threading
import time
from contextlib import suppress

import psutil


class Watch:
    """Looks at a driver and Ray's processes below it, from a thread, until the driver has ended."""

    def __init__(self, driver: "subprocess.Popen[bytes]", *, every: float = 0.1) -> None:
        self._driver, self._every = psutil.Process(driver.pid), every
        self._processes: dict[int, tuple[str, psutil.Process]] = {driver.pid: ("driver", self._driver)}
        self.memory: list[tuple[float, int]] = []
        """Bytes of the driver that are in memory, and when."""
        self.cpu: list[tuple[float, dict[str, float]]] = []
        """Processor seconds so far by kind of process, and when."""
        self._seconds: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends looking."""
        self._ended.set()
        self._thread.join()

    def peak_mb(self, begin: float = 0.0, end: float = float("inf")) -> int:
        """Most memory the driver had in that time."""
        return round(max((size for when, size in self.memory if begin <= when <= end), default=0) / 1e6)

    def spent(self, begin: float = 0.0, end: float = float("inf")) -> dict[str, float]:
        """Processor seconds by kind of process, between the looks nearest to these times."""
        looks = [look for look in self.cpu if begin <= look[0] <= end] or self.cpu[-1:]
        first = looks[0][1] if begin else {}
        return {kind: round(total - first.get(kind, 0.0), 2) for kind, total in looks[-1][1].items()}

    def _look(self) -> None:
        number = 0
        while not self._ended.wait(self._every):
            with suppress(psutil.Error):
                self.memory.append((time.time(), self._driver.memory_info().rss))
            if number % 10 == 0:
                self._count(find=number % 50 == 0)
            number += 1

    def _count(self, *, find: bool) -> None:
        if find:
            with suppress(psutil.Error):
                for child in self._driver.children(recursive=True):
                    if child.pid not in self._processes or self._processes[child.pid][0] == "other":
                        self._processes[child.pid] = (_kind(child), child)
        for pid, (kind, process) in self._processes.items():
            with suppress(psutil.Error):
                times = process.cpu_times()
                self._seconds[pid] = (kind, times.user + times.system)
        kinds: dict[str, float] = {}
        for kind, seconds in self._seconds.values():
            kinds[kind] = kinds.get(kind, 0.0) + seconds
        self.cpu.append((time.time(), kinds))


def _kind(process: psutil.Process) -> str:
    """What a process below a driver is."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return "other"
    known = {
        "::Coordinator": "coordinator",
        "ray::": "actors",
        "raylet/raylet": "raylet",
        "gcs_server": "gcs",
    }
    return next((kind for part, kind in known.items() if part in line), "other")
