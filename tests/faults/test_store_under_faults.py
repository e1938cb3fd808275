"""The store against a service that fails one request in five.

What was promised without faults is kept with them.
"""

import hashlib
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock

import pytest

import ray_dit.storage.s3 as s3
from ray_dit.errors import Conflict, Damaged, NotFound, StoreFailure
from ray_dit.storage.local_file import local_file
from ray_dit.storage.retry import Patience
from ray_dit.storage.s3 import S3Store
from tests.support import seaweed
from tests.support.proxy import FAULTS, LIES, Fault, FaultProxy

pytestmark = pytest.mark.s3

OPERATIONS = int(os.environ.get("RAY_DIT_STORE_OPERATIONS", "3000"))
"""Of the long run; `make faults` has 10,000."""


def content(key: str, writer: int) -> bytes:
    """What a writer would write: every writer something else, of differing length."""
    seed = hashlib.sha256(f"{key} {writer}".encode()).digest()
    return seed * (1 + seed[0] % 64)


@dataclass
class History:
    """What the clients were told."""

    won: Counter[str] = field(default_factory=Counter)
    tried: set[str] = field(default_factory=set)
    seen: dict[str, set[bytes]] = field(default_factory=dict)
    raised: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    lock: Lock = field(default_factory=Lock)


def operate(store: S3Store, history: History, seed: int, writer: int, count: int, keys: int) -> None:
    """One writer's seeded operations on the keys all writers share."""
    choice = random.Random(f"{seed} {writer}")
    for _ in range(count):
        key = f"k/{choice.randrange(keys):05d}"
        begin = time.monotonic()
        operation = choice.choices(["put", "get", "head", "list"], [60, 25, 13, 2])[0]
        with suppress(NotFound):
            one_operation(store, history, operation, key, writer)
        with history.lock:
            history.slowest = max(history.slowest, time.monotonic() - begin)


def one_operation(store: S3Store, history: History, operation: str, key: str, writer: int) -> None:
    match operation:
        case "put":
            with history.lock:
                history.tried.add(key)
            try:
                wrote = store.put(key, content(key, writer))
            except Conflict:
                wrote = False
            with history.lock:
                history.won[key] += wrote
        case "get":
            data = store.get(key)
            with history.lock:
                history.seen.setdefault(key, set()).add(data)
        case "head":
            info = store.head(key)
            assert info is None or info.sha256 is not None
        case _:
            assert all(info.size > 0 for info in store.list(key[:-2]))


def run_operations(
    upstream: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seed: int,
    operations: int,
    kinds: tuple[Fault, ...] = FAULTS,
    store_type: type[S3Store] = S3Store,
    rate: float = 0.2,
) -> FaultProxy:
    """16 writers through the proxy, a part ``rate`` of requests failing.

    Asserts what must hold; prints what was hit.
    """
    writers, keys, history = 16, operations // 15, History()
    with FaultProxy(upstream, seed=seed, rate=rate, kinds=kinds, stall_seconds=2.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = store_type(seaweed.fresh_uri(f"{store_type.__name__}-{seed}"), patience=seaweed.PATIENT)
        begin = time.monotonic()
        with ThreadPoolExecutor(writers) as pool:
            work = [
                pool.submit(operate, store, history, seed, writer, operations // writers, keys)
                for writer in range(writers)
            ]
            for future in work:
                future.result()
        seconds = time.monotonic() - begin
        proxy.quiesce()
    monkeypatch.setenv("AWS_ENDPOINT_URL", upstream)
    print(
        f"seed {seed}: {operations} operations, {sum(proxy.requests.values())} requests, "
        f"{sum(proxy.hits.values())} faults {dict(proxy.hits)}, {len(history.tried)} objects, {seconds:.0f} "
        f"s, slowest {history.slowest:.1f} s"
    )
    assert_history(store, history, writers)
    return proxy


def assert_history(store: S3Store, history: History, writers: int) -> None:
    assert history.won == dict.fromkeys(history.tried, 1), "not exactly one success a key"
    there = {info.key for info in store.list()}
    assert there == history.tried, "objects nobody wrote, or lost ones"
    for key in there:
        data = store.get(key)
        assert data in [content(key, writer) for writer in range(writers)], (
            f"{key} is not one writer's whole content"
        )
        assert history.seen.get(key, set()) <= {data}, f"{key} was read with other bytes"
    assert history.slowest < seaweed.PATIENT.deadline, "the deadline was not kept"
    assert list(store.clean(-1)) == [], "unfinished uploads were left"


def test_one_success_a_key_whatever_fails(upstream: str, monkeypatch: pytest.MonkeyPatch):
    proxy = run_operations(upstream, monkeypatch, seed=1, operations=960)
    assert set(proxy.hits) == set(FAULTS), "a fault was never met"


@pytest.mark.slow
def test_one_success_per_key_in_thousands_of_operations(upstream: str, monkeypatch: pytest.MonkeyPatch):
    proxy = run_operations(upstream, monkeypatch, seed=2, operations=OPERATIONS)
    assert min(proxy.hits[fault] for fault in FAULTS) > OPERATIONS // 500


class OverwritingStore(S3Store):
    """The mistake the oracle is there to find: a put that overwrites."""

    def _write(self, key: str, data: bytes, token: str, **condition: str) -> None:
        super()._write(key, data, token)


class ForgetfulStore(S3Store):
    """Another one: a 412 taken at its word, though it may be the answer to our own earlier attempt."""

    def _wrote(self, key: str, token: str) -> bool:
        return False


@pytest.mark.parametrize("mistaken", [OverwritingStore, ForgetfulStore])
def test_the_oracle_finds_mistakes(upstream: str, monkeypatch: pytest.MonkeyPatch, mistaken: type[S3Store]):
    # Which of 16 writers comes first is chance: so many keys and faults that some first one's reply is lost,
    # whoever it is.
    with pytest.raises(AssertionError, match="not exactly one success a key"):
        run_operations(
            upstream,
            monkeypatch,
            seed=3,
            operations=320,
            kinds=("reset_after",),
            store_type=mistaken,
            rate=0.5,
        )


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_survived(upstream: str, monkeypatch: pytest.MonkeyPatch, fault: Fault):
    """Every operation of the store meets the fault on its first two requests."""
    with FaultProxy(upstream, rate=1.0, kinds=(fault,), per_target=2, stall_seconds=1.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        quick = Patience(
            deadline=20.0, attempt=0.3, bytes_per_second=50e6, first_pause=0.01, longest_pause=0.05
        )
        store = S3Store(seaweed.fresh_uri(f"alone-{fault}"), patience=quick)
        assert store.put("a", b"one" * 1000) is True
        assert store.get("a") == b"one" * 1000
        info = store.head("a")
        assert info is not None
        assert info.etag
        store.replace("a", b"two" * 1000, if_match=info.etag)
        assert [found.key for found in store.list()] == ["a"]
        assert store.sha256("a") == hashlib.sha256(b"two" * 1000).hexdigest()
        proxy.quiesce()
        assert store.get("a") == b"two" * 1000
        store.delete("a")
        assert store.head("a") is None
    assert proxy.hits[fault] >= 6 or fault == "duplicate"


@pytest.mark.parametrize("fault", LIES)
def test_each_lie_alone_is_found_out(upstream: str, monkeypatch: pytest.MonkeyPatch, fault: Fault):
    """Whole by HTTP's measure, and wrong: hash, parser or range show it, and it is read again."""
    big = random.Random(fault).randbytes(100_000)
    with FaultProxy(upstream, rate=1.0, kinds=(fault,), methods=("GET", "PUT"), per_target=2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri(f"lie-{fault}"), patience=seaweed.PATIENT)
        for name in "abcde":
            assert store.put(f"k/{name}", big) is True
        assert store.get("k/a") == big
        assert [found.key for found in store.list("k/")] == [f"k/{name}" for name in "abcde"]
        if fault == "cut_body":
            assert store.get_range("k/b", 1000, 2000) == big[1000:3000]
            assert store.sha256("k/c") == hashlib.sha256(big).hexdigest()
    assert proxy.hits[fault] >= 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", upstream)
    assert {store.sha256(f"k/{name}") for name in "abcde"} == {hashlib.sha256(big).hexdigest()}


def test_a_copy_as_a_file_is_what_was_stored(upstream: str, monkeypatch: pytest.MonkeyPatch):
    with FaultProxy(upstream, rate=1.0, kinds=("flip",), methods=("GET",), per_target=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri(), patience=seaweed.PATIENT)
        store.put("a", b"weights" * 1000)
        with local_file(store, "a") as path:
            assert path.read_bytes() == b"weights" * 1000
    assert proxy.hits["flip"] == 1


def test_an_object_that_is_wrong_in_storage_is_refused(upstream: str, monkeypatch: pytest.MonkeyPatch):
    with FaultProxy(upstream, rate=1.0, kinds=("flip",), methods=("GET",), per_target=s3.READS) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri(), patience=seaweed.PATIENT)
        store.put("a", bytes(1000))
        with pytest.raises(Damaged, match="damaged"):
            store.get("a")
    assert proxy.hits["flip"] == s3.READS


def test_there_is_one_layer_of_retries(upstream: str, monkeypatch: pytest.MonkeyPatch):
    """A service that always fails is asked as often as our pauses allow, not three or five times as often."""
    pauses: list[int] = []

    class Counting(Patience):
        def pause(self, attempt: int) -> float:
            pauses.append(attempt)
            return 0.05

    with FaultProxy(upstream, rate=1.0, kinds=("error_500",), methods=("PUT",), per_target=10**6) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri(), patience=Counting(deadline=1.0, attempt=1.0))
        S3Store(store.uri).head("a")  # connects, which takes its time on a busy machine
        with pytest.raises(StoreFailure, match="was tried"):
            store.put("a", b"x")
    assert len(pauses) - 1 <= proxy.requests["PUT"] <= len(pauses), "the last attempt may not get that far"
    assert len(pauses) > 3


def test_a_service_that_never_answers_is_given_up_at_the_deadline(
    upstream: str, monkeypatch: pytest.MonkeyPatch
):
    with FaultProxy(upstream, rate=1.0, kinds=("stall",), methods=("PUT",), per_target=10**6) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri(), patience=Patience(deadline=1.5, attempt=0.4, first_pause=0.05))
        S3Store(store.uri).head("a")
        begin = time.monotonic()
        with pytest.raises(StoreFailure, match="tried . times in 2 s"):
            store.put("a", b"x")
        assert time.monotonic() - begin < 2.5


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An object of three parts, parts being as small as S3 allows."""
    monkeypatch.setattr(s3, "ONE_PUT", 6 << 20)
    monkeypatch.setattr(s3, "PART", 5 << 20)
    return random.Random(0).randbytes(11 << 20)


def test_uploads_in_parts_survive_faults(upstream: str, monkeypatch: pytest.MonkeyPatch, small_parts: bytes):
    with FaultProxy(upstream, seed=5, rate=0.5, per_target=2, stall_seconds=1.5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri("parts"), patience=seaweed.PATIENT)
        assert store.put("big", small_parts) is True
        assert store.put("big", small_parts) is False
        with pytest.raises(Conflict):
            store.put("big", small_parts[1:])
        assert store.get("big") == small_parts
        proxy.quiesce()
    assert sum(proxy.hits.values()) >= 5


def test_an_upload_whose_replies_are_lost_is_ours_and_leaves_nothing(
    upstream: str, monkeypatch: pytest.MonkeyPatch, small_parts: bytes
):
    """Begun twice, since the first reply is lost.

    It is completed, though the second completion finds no upload.
    """
    with FaultProxy(upstream, rate=1.0, kinds=("reset_after",), methods=("POST",), per_target=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri(), patience=seaweed.PATIENT)
        assert store.put("big", small_parts) is True
    assert proxy.hits == {"reset_after": 2}
    monkeypatch.setenv("AWS_ENDPOINT_URL", upstream)
    assert store.get("big") == small_parts
    assert list(store.clean(-1)) == []


class VanishedUploadStore(S3Store):
    """Stands for AWS, where a second completion finds no upload any more: 404, not SeaweedFS's 412."""

    def _write(self, key: str, data: bytes, token: str, **condition: str) -> None:
        super()._write(key, data, token, **condition)
        raise NotFound("NoSuchUpload")


def test_an_upload_that_is_gone_because_it_succeeded_is_ours(upstream: str):
    store = VanishedUploadStore(seaweed.fresh_uri())
    assert store.put("a", b"one") is True
    info = store.head("a")
    assert info is not None
    assert info.etag
    store.replace("a", b"two", if_match=info.etag)
    assert store.get("a") == b"two"


def test_a_service_that_ignores_conditions_is_found_out(upstream: str, monkeypatch: pytest.MonkeyPatch):
    with FaultProxy(upstream, drop_headers=("If-None-Match", "If-Match")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri()).checked()
        assert not store.conditional
        assert store.put("a", b"one") is True
        assert store.put("a", b"one") is False
        with pytest.raises(Conflict):
            store.put("a", b"two")
        info = store.head("a")
        store.replace("a", b"two", if_match=info.etag if info else "")  # type: ignore[union-attr]
        with pytest.raises(Conflict):
            store.replace("a", b"three", if_match=info.etag if info else "")  # type: ignore[union-attr]
        assert store.get("a") == b"two"
        assert [found.key for found in store.list()] == ["a"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", upstream)
    assert S3Store(seaweed.fresh_uri()).checked().conditional


def test_replace_loses_no_update(upstream: str, monkeypatch: pytest.MonkeyPatch):
    """Writers count up by replace-if-match; every success is in the final number."""
    successes = Counter[str]()

    def count_up(writer: int) -> None:
        for _ in range(6):
            info = store.head("n")
            assert info is not None
            assert info.etag
            number = int(store.get("n"))
            try:
                store.replace("n", str(number + 1).encode(), if_match=info.etag)
                successes["n"] += 1
            except Conflict:
                pass

    with FaultProxy(upstream, seed=7, rate=0.2, stall_seconds=2.0, per_target=40) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(seaweed.fresh_uri("count"), patience=seaweed.PATIENT)
        store.put("n", b"0")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(count_up, range(4)))
        proxy.quiesce()
        assert sum(proxy.hits.values()) > 5
        # A success whose reply was lost and whose object was replaced before we looked is reported as a
        # Conflict.
        assert 1 <= successes["n"] <= int(store.get("n"))
