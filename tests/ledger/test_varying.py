"""Objects that come out differently another time, as what they are made of came or went: nobody's fault.

Whoever writes the marker first counts, and one object with one marker is what stays.
"""

import threading
import time
from dataclasses import dataclass, replace

import pytest

from ray_dit.errors import Conflict
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.markers import mark, put_marker
from ray_dit.ledger.results import Facts, Marker
from ray_dit.ledger.writers import HashAlarm
from ray_dit.storage.local import LocalStore
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

WHOLE, LACKING = b"of all images", b"of those that are there"
KEY, NAME, MARKER = "data/0", "00000", "_markers/00000.json"


def begun(store: Store, settle_seconds: float = 0.0) -> Job:
    job = Job.open(store, "encode", {"config": {"seed": 0}})
    return replace(job, settle_seconds=settle_seconds)


def put(job: Job, data: bytes) -> Marker[Facts]:
    return job.put(NAME, KEY, data, Facts.model_validate({"of": data.decode()}), varies=data == LACKING)


def killed_before_its_marker(job: Job, data: bytes) -> None:
    put(job, data)
    job.store.delete(MARKER)


def only_with_conditions(store: Store) -> None:
    if store.uri.startswith("memory:"):
        pytest.skip("the weaker mode promises nothing to writers of the same moment")


def assert_consistent(job: Job, data: bytes) -> None:
    marker = job.marker(NAME, Facts)
    assert marker is not None
    assert marker.facts.to_json() == {"of": data.decode()}
    assert job.store.get(KEY) == data
    assert [str(problem) for problem in verify(job.store) if not problem.is_unfinished] == []


@pytest.mark.parametrize(("first", "then"), [(WHOLE, LACKING), (LACKING, WHOLE)])
def test_an_image_that_went_or_came_back_after_a_kill_is_no_alarm(
    store: Store, first: bytes, then: bytes
) -> None:
    job = begun(store)
    killed_before_its_marker(job, first)
    put(job, then)
    assert_consistent(job, then)
    store.delete(MARKER)
    put(job, first)  # as often as it likes
    assert_consistent(job, first)


def test_a_writer_killed_between_record_and_object_leaves_no_alarm_behind(store: Store) -> None:
    job = begun(store)
    killed_before_its_marker(job, WHOLE)
    job._writers.record(KEY, "0" * 64, varies=True)  # pyright: ignore[reportPrivateUsage]
    put(job, WHOLE)
    assert_consistent(job, WHOLE)


def test_the_alarm_stays_for_what_does_not_vary_and_for_what_nobody_made(store: Store) -> None:
    job = begun(store)
    killed_before_its_marker(job, WHOLE)
    with pytest.raises(HashAlarm, match="came out differently"):
        job.put(NAME, KEY, b"of a broken machine", Facts())
    killed_before_its_marker(job, LACKING)
    store.delete(KEY)
    store.put(KEY, b"of a broken disk")
    for data in (WHOLE, LACKING):
        with pytest.raises(HashAlarm, match="holds other bytes than this job wrote"):
            put(job, data)
    assert store.get(KEY) == b"of a broken disk"


def test_another_kind_of_machine_may_have_seen_other_images(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(store)
    killed_before_its_marker(job, WHOLE)
    monkeypatch.setattr("ray_dit.ledger.writers.machine_kind", lambda: "another machine")
    put(job, LACKING)
    assert_consistent(job, LACKING)


def test_of_two_live_writers_the_first_counts(store: Store) -> None:
    only_with_conditions(store)
    for number in range(4):
        job = begun(store.child(str(number)), settle_seconds=20.0)
        barrier, markers = threading.Barrier(4), list[Marker[Facts]]()

        def write(data: bytes, job: Job = job, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            markers.append(put(job, data))  # noqa: B023

        threads = [threading.Thread(target=write, args=(data,)) for data in (WHOLE, LACKING) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(markers) == 4
        assert all(marker == markers[0] for marker in markers)
        assert_consistent(job, WHOLE if markers[0].facts.to_json()["of"] == WHOLE.decode() else LACKING)


@dataclass(frozen=True)
class WakingStore(LocalStore):
    """One in which another writer, who seemed dead, writes its marker just as its object is replaced."""

    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        super().replace(key, data, if_match=if_match)
        if key == KEY and data == LACKING:
            facts = Facts.model_validate({"of": WHOLE.decode()})
            put_marker(open_store(self.uri), MARKER, mark(NAME, KEY, WHOLE, facts))


def test_a_writer_that_wakes_as_its_object_is_replaced_gets_it_back(tmp_path_factory: pytest.TempPathFactory):
    store = WakingStore(str(tmp_path_factory.mktemp("waking")))
    job = begun(store)
    killed_before_its_marker(job, WHOLE)
    assert put(job, LACKING).facts.to_json() == {"of": WHOLE.decode()}
    assert_consistent(job, WHOLE)


def test_a_loser_waits_for_the_marker_of_the_winner(store: Store) -> None:
    slow = begun(store, settle_seconds=20.0)
    slow._writers.record(KEY, "0" * 64)  # pyright: ignore[reportPrivateUsage]
    store.put(KEY, WHOLE)
    slow._writers.record(KEY, store.sha256(KEY), varies=True)  # pyright: ignore[reportPrivateUsage]

    def finish() -> None:
        time.sleep(0.5)
        put(slow, WHOLE)

    thread = threading.Thread(target=finish)
    thread.start()
    assert put(slow, LACKING).facts.to_json() == {"of": WHOLE.decode()}
    thread.join()
    assert_consistent(slow, WHOLE)


def test_what_is_forgotten_is_made_again(store: Store) -> None:
    job = begun(store)
    put(job, LACKING)
    job.forget([NAME])
    assert list(job.names()) == []
    put(job, WHOLE)
    assert_consistent(job, WHOLE)


def test_a_record_that_many_add_to_keeps_all(store: Store) -> None:
    only_with_conditions(store)
    job = begun(store)
    hashes = [f"{number:064d}" for number in range(12)]
    threads = [
        threading.Thread(target=job._writers.record, args=(KEY, sha256), kwargs={"varies": True})  # pyright: ignore[reportPrivateUsage]
        for sha256 in hashes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sha256 in hashes:
        job._writers.check(KEY, sha256, first=False, conflict=Conflict())  # pyright: ignore[reportPrivateUsage]
