"""Who made which bytes: the alarm rings for those of the same kind of machine, and for nobody's."""

from pathlib import Path

import pytest

from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Facts, Result
from ray_dit.ledger.stored_json import read_json
from ray_dit.ledger.writers import HashAlarm
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

SHARD = b"a shard of the job"
KINDS = ("one machine", "another machine")


def begun(store: Store) -> Job:
    return Job.open(store, "generate", {"config": {"seed": 0}})


def as_kind(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """From here on this process counts as that kind of machine."""
    monkeypatch.setattr("ray_dit.ledger.writers.machine_kind", lambda: kind)


def put(job: Job, number: int, data: bytes = SHARD) -> None:
    job.put(f"{number:05d}", f"data/{number}", data, Facts())


def flip(store: Store, key: str, *gone: str) -> bytes:
    """Changes a bit of an object and removes others; what is there then."""
    data = store.get(key)
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    for other in (key, *gone):
        store.delete(other)
    store.put(key, flipped)
    return flipped


def kinds(store: Store) -> list[str]:
    return [read_json(store, info.key)["machine"] for info in store.list("_runs/writers/")]


def test_what_is_not_computed_registers_no_machine(tmp_path: Path) -> None:
    job = begun(open_store(str(tmp_path)))
    job.put_plain("README.md", b"read me")
    assert kinds(job.store) == []
    put(job, 0)
    job.put_plain("checkpoint", b"weights", computed=True)
    assert len(kinds(job.store)) == 1


def test_a_flipped_byte_of_a_shard_rings_when_it_is_made_again(store: Store) -> None:
    job = begun(store)
    put(job, 0)
    job.put_plain("README.md", b"written by the driver")
    job.finish(Result())
    flipped = flip(store, "data/0", "_markers/00000.json", "manifest.json")
    with pytest.raises(HashAlarm, match="data/0 holds other bytes than this job.*once it is deleted"):
        put(begun(store), 0)
    assert store.get("data/0") == flipped, "nothing is replaced"
    assert job.marker("00000", Facts) is None
    store.delete("data/0")  # the way out that the message names
    put(job, 0)
    assert store.get("data/0") == SHARD


@pytest.mark.parametrize("maker", KINDS)
@pytest.mark.parametrize("again", KINDS)
def test_two_kinds_in_one_job_keep_the_alarm_for_each(
    store: Store, monkeypatch: pytest.MonkeyPatch, maker: str, again: str
) -> None:
    job = begun(store)
    for number, kind in enumerate(KINDS):
        as_kind(monkeypatch, kind)
        put(job, number, kind.encode())
    number = KINDS.index(maker)
    flip(store, f"data/{number}", f"_markers/{number:05d}.json")
    as_kind(monkeypatch, again)
    with pytest.raises(HashAlarm, match="holds other bytes than this job wrote there"):
        put(job, number, again.encode())


def test_the_same_kind_with_two_results_rings_though_others_write_here_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(store)
    for number, kind in enumerate(KINDS):
        as_kind(monkeypatch, kind)
        put(job, number)
    store.delete("_markers/00001.json")
    with pytest.raises(HashAlarm, match="came out differently from the same job on the same kind of machine"):
        put(job, 1, b"something else")
    store.delete("data/1")  # it is known what was there
    with pytest.raises(HashAlarm, match="came out differently"):
        put(job, 1, b"something else")


def test_bytes_of_another_kind_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = begun(store)
    as_kind(monkeypatch, KINDS[0])
    job.put_plain("checkpoint", b"first", computed=True)
    as_kind(monkeypatch, KINDS[1])
    job.put_plain("checkpoint", b"second", computed=True)
    assert store.get("checkpoint") == b"first"


def test_a_damaged_record_says_nothing(tmp_path: Path) -> None:
    job = begun(open_store(str(tmp_path)))
    put(job, 0)
    (record,) = (tmp_path / "_runs/made").rglob("*.json")
    whole = record.read_bytes()
    record.write_bytes(whole.replace(b'"sha256": "', b'"sha256": "0'))
    (tmp_path / "_markers/00000.json").unlink()
    put(job, 0)
    assert record.read_bytes() == whole


def test_of_an_earlier_version_only_the_kinds_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote no records: as then, two kinds in the folder silence the alarm, and one kind rings it."""
    job = begun(open_store(str(tmp_path)))
    impatient = Job(job.store, job.stage, job.fingerprint, settle_seconds=0.0)
    job.store.put("data/0", b"of a writer that died")
    with pytest.raises(HashAlarm):
        put(impatient, 0)
    as_kind(monkeypatch, KINDS[1])
    for record in (tmp_path / "_runs/made").rglob("*.json"):
        record.unlink()
    put(impatient, 0)
    assert job.store.get("data/0") == SHARD
