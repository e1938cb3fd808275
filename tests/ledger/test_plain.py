"""Plain objects: listed whoever wrote them, put back where they are damaged, gone where they are dropped."""

import hashlib
from pathlib import Path

import pytest

from ray_dit.errors import Damaged, UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import plain_objects
from ray_dit.ledger.results import Result
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store


def begun(store: Store) -> Job:
    return Job.open(store, "train", {"config": {"seed": 0}})


def listed(job: Job) -> list[str]:
    """The keys that the finished job lists."""
    return [marker.key for marker in plain_objects(job.store, job.finish(Result()))]


def test_they_are_listed_sorted_with_their_hashes(store: Store) -> None:
    job = begun(store)
    job.put_plain("vae/config.json", b"{}")
    job.put_plain("README.md", b"read me")
    manifest = job.finish(Result())
    assert [marker.key for marker in plain_objects(store, manifest)] == ["README.md", "vae/config.json"]
    for marker in plain_objects(store, manifest):
        assert (marker.sha256, marker.bytes) == (store.sha256(marker.key), len(store.get(marker.key)))
    assert manifest.plain[0].count == 2


def test_what_was_dropped_is_not_listed(store: Store) -> None:
    job = begun(store)
    for step in (1, 2):
        job.put_plain(f"checkpoints/{step}", b"weights", computed=True)
    job.plain.drop("checkpoints/1")
    assert listed(job) == ["checkpoints/2"]
    assert store.head("checkpoints/1") is None


def test_a_writer_that_died_before_the_marker_is_made_up_for(store: Store) -> None:
    job = begun(store)
    store.put("README.md", b"read")  # of other words: an earlier version wrote them, and no marker
    store.put("plan", b"a plan")
    job.put_plain("README.md", b"read me")
    job.put_plain("plan", b"a plan")
    assert store.get("README.md") == b"read me"
    assert listed(job) == ["README.md", "plan"]


def test_what_an_earlier_version_computed_is_adopted(store: Store) -> None:
    job = begun(store)
    store.put("checkpoints/1", b"weights")
    store.put("samples/1.png", b"image")
    job.plain.adopt("checkpoints/")
    assert listed(job) == ["checkpoints/1"]


def test_what_is_whole_stays_though_it_would_come_out_otherwise_now(store: Store) -> None:
    begun(store).put_plain("README.md", b"in the words of an earlier version")
    begun(store).put_plain("README.md", b"in ours")
    assert store.get("README.md") == b"in the words of an earlier version"


def test_what_is_damaged_is_put_back_by_the_next_run(tmp_path: Path) -> None:
    job = begun(open_store(str(tmp_path)))
    job.put_plain("plan", b"a plan")
    (tmp_path / "plan").write_bytes(b"a plam")
    with pytest.raises(Damaged, match="plan does not hold what was written there: `ray-dit verify"):
        job.plain.get("plan")
    job.put_plain("plan", b"a plan")
    assert job.plain.get("plan") == b"a plan"


def test_a_damaged_marker_is_written_anew(tmp_path: Path) -> None:
    job = begun(open_store(str(tmp_path)))
    job.put_plain("plan", b"a plan")
    marker = tmp_path / "_plain/plan.json"
    whole = marker.read_bytes()
    marker.write_bytes(whole[:-9])
    job.put_plain("plan", b"a plan")
    assert marker.read_bytes() == whole
    marker.write_bytes(whole[:-9])
    assert listed(job) == ["plan"]
    assert marker.read_bytes() == whole


def test_of_plans_the_first_counts_whoever_stored_it(store: Store) -> None:
    plain = begun(store).plain
    assert plain.first("plan") is None
    assert plain.put_first("plan", b"plan 1") == b"plan 1"
    assert plain.put_first("plan", b"plan 2") == plain.first("plan") == b"plan 1"
    store.delete("_plain/plan.json")  # its writer was killed before the marker
    assert plain.first("plan") == b"plan 1"
    assert plain.put_first("plan", b"plan 2") == b"plan 1"
    assert plain.sha256("plan") == hashlib.sha256(b"plan 1").hexdigest()
    for key in ("_plain/plan.json", "plan"):
        store.delete(key)
    store.put("plan", b"damaged before it had a marker")
    assert plain.first("plan") is None
    assert plain.put_first("plan", b"plan 3") == plain.put_first("plan", b"plan 4") == b"plan 3"
    store.delete("plan")
    assert plain.first("plan") is None
    assert plain.put_first("plan", b"plan 3") == store.get("plan") == b"plan 3"
    store.delete("plan")
    with pytest.raises(UserError, match="plan cannot be repaired here"):
        plain.put_first("plan", b"plan 4")
