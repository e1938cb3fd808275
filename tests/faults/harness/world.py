"""Where the runs take place: one Ray cluster, one S3 server, a proxy between them; knows no plan of faults.

The cluster is a head without CPUs and two nodes. Commands are processes of their own, forked from a server.
"""

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Self

import psutil

from ray_dit.storage.s3 import S3Store
from tests.faults.harness.driver import drive
from tests.support import seaweed
from tests.support.proxy import ALL, FaultProxy

NODES = 2
CPUS = 3
"""Of each node."""
SERVICES = (
    "IDLE", "DashboardAgent", "RuntimeEnvAgent", "ActorLocationTracker", "_AutoscalingCoordinatorActor",
    "_UsageCollectionActor", "_StatsActor", "PlacementGroupCleaner",
)  # fmt: skip
"""Ray's processes that work for no job of ours: they wait, or live as long as the cluster. The last is Ray
Train's, which outlives a driver that was killed."""


@dataclass
class Command:
    """A command that was started: its process, and the file with what it prints."""

    process: Any
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_over(self) -> bool:
        return not self.process.is_alive()

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal, None while it runs."""
        return self.process.exitcode

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class World:
    """A context; everything it started has ended when it is left."""

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
            self.upstream = seaweed.endpoint()
            self.proxy = stack.enter_context(
                FaultProxy(self.upstream, kinds=ALL, stall_seconds=0.5, latency_seconds=0.2)
            )
            stack.enter_context(_environment(self._common()))
            with self.through_the_proxy():
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload(["tests.faults.harness.driver"])
                forkserver.ensure_running()  # here: commands have the environment that it was started in
                self._context: Any = context
                stack.callback(_stop_forks)
                self.cluster = self._make_cluster(stack)
            self._commands = 0
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _common(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir()
        return {
            **seaweed.environment(self.upstream),
            "HOME": str(home),
            "RAY_DIT_CACHE": str(self.cache),
            "RAY_AUTH_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            "RAY_BACKEND_LOG_LEVEL": "fatal",
        }

    @property
    def cache(self) -> Path:
        """Where workers keep local copies of latents."""
        return self.folder / "cache"

    def through_the_proxy(self) -> contextlib.AbstractContextManager[None]:
        """What is started inside reaches S3 by way of the proxy; this process never does."""
        return _environment({"AWS_ENDPOINT_URL": self.proxy.endpoint})

    def _make_cluster(self, stack: contextlib.ExitStack) -> Any:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        stack.callback(cluster.shutdown)
        for _ in range(NODES):
            cluster.add_node(num_cpus=CPUS)
        return cluster

    def prepare(self, whole_latents: str) -> None:
        """Puts the inputs into S3; ``latents`` are those at ``whole_latents`` of an undisturbed run."""
        source, target = S3Store(whole_latents), S3Store(f"{self.inputs}/latents")
        for info in source.list():
            if not info.key.startswith("_runs/"):
                target.put(info.key, source.get(info.key))

    @property
    def inputs(self) -> str:
        """URI of the inputs."""
        return f"s3://{seaweed.BUCKET}/faults/inputs"

    def start(self, words: list[str]) -> Command:
        """Starts ``ray-dit WORDS``, as a process of its own."""
        self._commands += 1
        log = self.folder / f"command-{self._commands:05d}.log"
        process = self._context.Process(target=drive, args=(words, str(log)), daemon=True)
        process.start()
        return Command(process, log)

    def raylets(self) -> list[int]:
        """Process ids of the raylets that may be killed: not the head's."""
        return [_raylet(node).pid for node in self.cluster.worker_nodes]

    def heal(self) -> None:
        """Replaces nodes whose raylet has died."""
        for node in [node for node in self.cluster.worker_nodes if _raylet(node).poll() is not None]:
            self.cluster.remove_node(node, allow_graceful=False)
            with self.through_the_proxy():
                self.cluster.add_node(num_cpus=CPUS)

    def workers(self) -> list[psutil.Process]:
        """Ray's processes that work for some job, oldest first; idle ones and its own services left out."""
        found = [process for pid in self._all_raylets() for process in _children(pid) if _is_working(process)]
        return sorted(found, key=lambda process: process.pid)

    def _all_raylets(self) -> list[int]:
        return [*self.raylets(), _raylet(self.cluster.head_node).pid]

    def await_quiet(self, seconds: float) -> list[str]:
        """Waits until no process works for a job any more; those that are left after so many seconds."""
        end = time.monotonic() + seconds
        while (left := self.workers()) and time.monotonic() < end:
            time.sleep(0.1)
        return [f"{process.pid} {_name(process)}" for process in left]


def _raylet(node: Any) -> Any:
    if "raylet" not in node.all_processes:
        raise SystemExit("the cluster has been taken down: nothing more can be tried")
    return node.all_processes["raylet"][0].process


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def _is_working(process: psutil.Process) -> bool:
    name = _name(process)
    return name.startswith("ray::") and not any(word in name for word in SERVICES)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _stop_forks() -> None:
    """Ends the server of forks; multiprocessing has no public way to do so before the process ends."""
    forkserver._forkserver._stop()  # pyright: ignore
