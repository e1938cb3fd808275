"""A marker that stands for several objects: the one at its key lists the others."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ray_dit.errors import Conflict
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import Tally, abandon, repair, verify
from ray_dit.ledger.results import Facts, Marker, Result
from ray_dit.ledger.writers import HashAlarm
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

PARTS: dict[str, Any] = {"config": {"seed": 0}}
KEY = "data/0.files.json"


class Shards(Result):
    """What the jobs of these tests leave."""

    stage_name = "generate"


def files(text: str = "image") -> dict[str, bytes]:
    return {f"train/cat/{number}.png": f"{text} {number}".encode() for number in range(5)}


def listing(of: dict[str, bytes]) -> bytes:
    told = [{"key": key, "sha256": hashlib.sha256(data).hexdigest()} for key, data in of.items()]
    return json.dumps({"files": told}).encode()


def put(job: Job, of: dict[str, bytes]) -> Marker[Facts]:
    return job.put("00000", KEY, listing(of), Facts(rows=5), files=of)


def finished(store: Store) -> Job:
    job = Job.open(store, "generate", PARTS)
    put(job, files())
    job.finish(Shards())
    return job


def rebuilt(folder: Store, marker: Marker[Facts]) -> dict[str, bytes]:
    return {KEY: listing(files()), **files()}


def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_dit.ledger.writers.machine_kind", lambda: "another machine")


def test_the_marker_counts_what_it_stands_for(store: Store) -> None:
    marker = put(Job.open(store, "generate", PARTS), files())
    assert (marker.files, marker.bytes) == (5, len(listing(files())) + sum(map(len, files().values())))
    assert {key: store.get(key) for key in files()} == files()
    alone = Job.open(store, "generate", PARTS).put("00001", "data/1", b"one", Facts())
    assert "files" not in alone.to_json()


def test_verify_reads_every_file_and_repair_puts_it_back(store: Store) -> None:
    finished(store)
    tally = Tally()
    assert list(verify(store, tally=tally)) == []
    store.delete("train/cat/1.png")
    store.delete("train/cat/3.png")
    store.put("train/cat/3.png", b"another")
    found = [(problem.key, problem.what) for problem in verify(store)]
    assert found == [("train/cat/1.png", "missing"), ("train/cat/3.png", "damaged")]
    calls: list[str] = []

    def counted(folder: Store, marker: Marker[Facts]) -> dict[str, bytes]:
        calls.append(marker.key)
        return rebuilt(folder, marker)

    assert len(list(repair(store, counted))) == 2
    assert calls == [KEY], "a shard is made once for all of its files"
    assert list(verify(store)) == []
    store.delete(KEY)
    store.delete("train/cat/0.png")
    assert [problem.key for problem in verify(store)] == [KEY], "without the list nothing tells the files"
    list(repair(store, rebuilt))
    assert list(verify(store)) == []


def test_a_list_that_names_no_files_is_a_problem(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    Job.open(store, "generate", PARTS).put("00000", KEY, b'{"files": [{}]}', Facts(), files=files())
    assert "it lists no files, though its marker says so" in {problem.what for problem in verify(store)}


def test_what_a_killed_writer_left_is_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.open(store, "generate", PARTS)
    store.put("train/cat/2.png", b"of another machine, which died")
    impatient = Job(job.store, job.stage, job.fingerprint, settle_seconds=0.0)
    assert put(impatient, files()).files == 5
    assert {key: store.get(key) for key in files()} == files()
    job.finish(Shards())
    assert list(verify(store)) == []


def test_of_two_machines_the_first_ones_files_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.open(store, "generate", PARTS)
    first = put(job, files())
    with monkeypatch.context() as other:
        other_machine(other)
        assert put(job, files("other")) == first
    assert {key: store.get(key) for key in files()} == files()


def test_the_same_machine_that_makes_other_files_is_an_alarm(store: Store) -> None:
    job = Job.open(store, "generate", PARTS)
    put(job, files())
    job.forget(["00000"])
    with pytest.raises(HashAlarm, match="came out differently"):
        put(job, files("other"))


def test_files_of_an_extension_are_abandoned_with_it(store: Store) -> None:
    finished(store)
    before = {info.key for info in store.list()}
    longer = PARTS | {"config": {"seed": 0, "images": 5}}
    job = Job.extend(store, "generate", longer, may_change=["config.images"])
    added = {key.replace("cat/", f"cat/{job.prefix}"): data for key, data in files().items()}
    job.put("00001", f"data/{job.prefix}1.files.json", listing(added), Facts(), files=added)
    list(abandon(store))
    left = {info.key for info in store.list() if not info.key.startswith("_runs/")}
    assert left == {key for key in before if not key.startswith("_runs/")}
    with pytest.raises(Conflict, match="other settings"):
        Job.open(store, "generate", longer)
