"""What may differ between runs of one job.

That is clocks, hosts, hardware and attempts; nothing here determines a byte of it.
"""

import os
import platform
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from ray_dit.ledger.stored_json import Json, canonical, sealed
from ray_dit.storage.store import Store


def machine_kind() -> str:
    """What decides the last bits of what this process computes.

    It is the device (GPU model, or CPU instruction set), the number of threads, which
    ``core.determinism.make_deterministic`` sets to the job's, and torch's build. A process without torch can
    only differ by its kind of CPU.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return platform.machine()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    device = torch.cuda.get_device_name() if on_gpu else cpu
    return f"{device} · {torch.get_num_threads()} threads · torch {torch.__version__}"


class RunRecord:
    """When, where and how a job ran: ``_runs/<id>/start.json``, ``events/``, ``end.json``; a context."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.id = run_id
        self._store = store.child(f"_runs/{run_id}")
        self._begin = time.monotonic()

    @classmethod
    def start(cls, store: Store, facts: Mapping[str, Json]) -> Self:
        """Writes ``start.json``: clock, host, hardware, command and the caller's facts."""
        run = cls(store, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}")
        here = {
            "host": platform.node(),
            "machine": machine_kind(),
            "cpus": os.cpu_count(),
            "pid": os.getpid(),
        }
        command = {"command": sys.orig_argv, "python": platform.python_version()}
        run._put("start", {**here, **command, **facts})
        return run

    def event(self, name: str, **facts: Json) -> None:
        """Records that something happened, from any process that holds the run."""
        self._put(f"events/{time.time_ns()}-{uuid.uuid4().hex[:8]}", {"event": name, **facts})

    def end(self, **facts: Json) -> None:
        """Writes ``end.json``: seconds and the caller's counts."""
        self._put("end", {"seconds": round(time.monotonic() - self._begin, 3), **facts})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.event("failed", error=f"{type(error).__name__}: {error}")

    def _put(self, name: str, facts: Mapping[str, Json]) -> None:
        self._store.put(f"{name}.json", canonical(sealed({"clock": datetime.now(UTC).isoformat(), **facts})))
