"""A job that is killed, or stopped and woken too late, anywhere: the result is the same bytes."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import gc, verify
from ray_dit.storage.local import TEMP
from ray_dit.storage.open import open_store
from ray_dit.storage.s3 import S3Store
from ray_dit.storage.store import Store
from tests.support import seaweed
from tests.support.killer import SignalAt
from tests.support.proxy import FaultProxy
from tests.support.small_job import LONGER, READMES, SHARDS, small_job

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: dozens of jobs wait for no disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def contents(store: Store) -> dict[str, bytes]:
    """Every object of a job but the records of runs and a killed trial's probe."""
    return {
        info.key: store.get(info.key)
        for info in store.list()
        if not info.key.startswith(("_runs/", "_check/"))
    }


def is_part_of(store: Store, whole: dict[str, bytes]) -> bool:
    """Whether a killed job's objects are the whole one's, but for the README before it was replaced."""
    first = whole | {"README.md": READMES[0]}
    return any(contents(store).items() <= known.items() for known in (whole, first))


def start(uri: str, *arguments: object, **environment: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.support.small_job", uri, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | environment)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the job makes when nothing happens."""
    store = open_store(str(tmp_path_factory.mktemp("undisturbed")))
    small_job(store)
    return contents(store)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many changes the job makes to its folder: temp files, links, folders."""
    out, _ = start(str(tmp_path_factory.mktemp("counted")), 0, 0).communicate(timeout=60)
    return int(out)


def test_killed_before_any_change_of_the_folder(
    memory_folder: Path, undisturbed: dict[str, bytes], places: int
):
    assert places > 30
    for place in range(1, places + 1):
        folder = memory_folder / str(place)
        folder.mkdir()
        process = start(str(folder), place, int(signal.SIGKILL))
        assert process.wait(60) == -signal.SIGKILL
        store = open_store(str(folder))
        assert is_part_of(store, undisturbed), f"half a write after a kill at {place}"
        small_job(store)
        assert contents(store) == undisturbed, f"other bytes after a kill at {place}"
        assert list(verify(store)) == []
        list(gc(store, older_than=-1))
        assert not list(folder.rglob(f"{TEMP}*"))


def versions(store: Store) -> dict[str, object]:
    """Every object with what would change if it were written anew."""
    return {info.key: info.etag for info in store.list() if not info.key.startswith("_runs/")}


def test_a_writer_that_wakes_after_the_manifest_changes_nothing(
    memory_folder: Path, undisturbed: dict[str, bytes], places: int
):
    locked = 0
    for place in range(1, places + 1):
        folder = memory_folder / str(place)
        folder.mkdir()
        zombie = start(str(folder), place, int(signal.SIGSTOP))
        _, status = os.waitpid(zombie.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        store = open_store(str(folder))
        other = threading.Thread(target=small_job, args=(store,))
        other.start()
        other.join(20)
        waits = (
            other.is_alive()
        )  # for the folder's lock, which the sleeper holds while it replaces the README
        locked += waits
        before = versions(store)
        os.kill(zombie.pid, signal.SIGCONT)
        assert zombie.wait(60) == 0
        other.join()
        assert waits or versions(store) == before, f"changed by a writer that slept at {place}"
        assert contents(store) == undisturbed
        assert not list(folder.rglob(f"{TEMP}*"))
    assert locked <= 1


# On S3, where a write is one request


class Crash(BaseException):
    """Stands for the process's end: nothing catches it, nothing is cleaned up after it."""


@dataclass
class Countdown:
    """Crashes at the ``nth`` write, before or after it is done."""

    nth: int
    after: bool
    writes: int = field(default=0, init=False)

    def around(self, write: Callable[[], T]) -> T:
        self.writes += 1
        if self.writes == self.nth and not self.after:
            raise Crash
        try:
            return write()
        finally:  # where it was refused, too
            if self.writes == self.nth:
                raise Crash


@dataclass(frozen=True)
class CrashingStore(S3Store):
    """An S3 store whose writes are counted, and one of them fatal."""

    countdown: Countdown = field(default_factory=lambda: Countdown(0, False), kw_only=True, compare=False)

    def put(self, key: str, data: bytes) -> bool:
        return self.countdown.around(lambda: super(CrashingStore, self).put(key, data))

    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        return self.countdown.around(lambda: super(CrashingStore, self).replace(key, data, if_match=if_match))

    def checked(self) -> "CrashingStore":
        return self  # its probes are no writes of the protocol


@pytest.mark.s3
def test_crashed_between_any_two_writes_on_s3(upstream: str, undisturbed: dict[str, bytes]):
    counting = CrashingStore(seaweed.fresh_uri())
    small_job(counting)
    writes = counting.countdown.writes
    kinds, replacing = len(SHARDS), 2  # the second README is tried first as if there were none
    assert writes == len(undisturbed) + kinds + sum(SHARDS) + replacing
    for nth in range(1, writes + 1):
        for after in (False, True):
            store = S3Store(seaweed.fresh_uri())
            with pytest.raises(Crash):
                small_job(CrashingStore(store.uri, countdown=Countdown(nth, after)))
            assert is_part_of(store, undisturbed)
            small_job(store)
            assert contents(store) == undisturbed, f"crash {'after' if after else 'before'} write {nth}"


def kill_at_request(upstream: str, nth: int, *, after: bool, undisturbed: dict[str, bytes]) -> None:
    """A process killed when the service has, or has not yet, got its nth PUT.

    Then the job is run to its end.
    """
    watcher = SignalAt(nth, after)
    uri = seaweed.fresh_uri()
    with FaultProxy(upstream, watch=watcher) as proxy:
        process = start(uri, **seaweed.environment(proxy.endpoint))
        watcher.pid = process.pid
        assert process.wait(60) == -signal.SIGKILL
        assert watcher.sent
    store = open_store(uri)
    small_job(store)
    assert contents(store) == undisturbed


@pytest.mark.s3
def test_a_process_killed_at_a_request(upstream: str, undisturbed: dict[str, bytes]):
    kill_at_request(upstream, 8, after=True, undisturbed=undisturbed)


@pytest.mark.s3
@pytest.mark.slow
def test_a_process_killed_at_any_request(upstream: str, undisturbed: dict[str, bytes]):
    with FaultProxy(upstream) as proxy:
        assert start(seaweed.fresh_uri(), **seaweed.environment(proxy.endpoint)).wait(60) == 0
    for nth in range(1, proxy.requests["PUT"] + 1):
        for after in (False, True):
            kill_at_request(upstream, nth, after=after, undisturbed=undisturbed)


@pytest.mark.s3
def test_the_protocol_under_faults_is_the_protocol(
    upstream: str, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    with FaultProxy(upstream, seed=11, rate=0.3, stall_seconds=1.0, per_target=2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri("protocol"), patience=seaweed.PATIENT)
        assert small_job(store).is_finished()
        assert Job.open(store, "generate", LONGER, generation=1).is_finished()
        proxy.quiesce()
        assert sum(proxy.hits.values()) > 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", upstream)
    assert contents(store) == undisturbed
