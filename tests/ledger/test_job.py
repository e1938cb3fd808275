"""The job protocol: who writes what, what is read, how jobs are extended, verified, repaired and cleaned."""

import hashlib
import io
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pytest

from ray_dit.errors import Conflict, Damaged, NotFound, UserError
from ray_dit.ledger import runs
from ray_dit.ledger.comparison import Comparison
from ray_dit.ledger.description import generation_of
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import Tally, abandon, gc, repair, verify
from ray_dit.ledger.manifest import manifest_objects, read_manifest, tied_manifest
from ray_dit.ledger.results import Facts, Marker, Result
from ray_dit.ledger.stored_json import canonical, read_json
from ray_dit.ledger.writers import HashAlarm
from ray_dit.storage.local import LocalStore
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.storage.test_store import OverwritingStore

PARTS: dict[str, Any] = {
    "config": {"seed": 0, "model": {"depth": 2}},
    "inputs": {"vae": "ab"},
    "libraries": {"torch": "2.13"},
}
LONGER = PARTS | {"config": {"seed": 0, "model": {"depth": 2}, "images": 5}}
EVEN_LONGER = PARTS | {"config": {"seed": 0, "model": {"depth": 2}, "images": 6}}
NEWER = PARTS | {"libraries": {"torch": "2.14"}}


class Shards(Result):
    """What the jobs of these tests leave."""

    stage_name = "generate"

    rows: int = 0


class Latents(Result):
    """What they do not leave."""

    stage_name = "encode"


class Model(Result):
    """Of a stage that another one's command makes."""

    stage_name = "model"


def shard(number: int) -> bytes:
    return f"shard {number}\n".encode() * 100


def put_shards(job: Job, *numbers: int) -> list[Marker[Facts]]:
    return [
        job.put(f"{number:05d}", f"data/{job.prefix}{number:05d}", shard(number), Facts(rows=1))
        for number in numbers
    ]


def finished(store: Store, numbers: range = range(3)) -> Job:
    job = Job.open(store, "generate", PARTS)
    put_shards(job, *numbers)
    job.finish(Shards(rows=len(numbers)))
    return job


def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this process counts as another kind of machine."""
    monkeypatch.setattr("ray_dit.ledger.writers.machine_kind", lambda: "another machine")


# Fingerprints


def assert_other_settings_are_refused(store: Store) -> None:
    Job.open(store, "generate", PARTS)
    with pytest.raises(Conflict):
        Job.open(store, "generate", PARTS | {"config": {"seed": 1}})
    assert Job.open(store, "generate", PARTS).fingerprint == read_json(store, "_job.json")["fingerprint"]


def test_a_folder_belongs_to_one_fingerprint(store: Store):
    assert_other_settings_are_refused(store)


class TrustingStore(LocalStore):
    """A job's description is not compared with the one that is there."""

    def put(self, key: str, data: bytes) -> bool:
        return False if key == "_job.json" and self.head(key) else super().put(key, data)


@pytest.mark.parametrize("mistaken", [OverwritingStore, TrustingStore])
def test_without_put_if_absent_or_the_fingerprint_check_the_suite_fails(
    tmp_path: Path, mistaken: type[LocalStore]
):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_other_settings_are_refused(mistaken(str(tmp_path)))


def test_the_refusal_names_what_differs_and_what_to_do(tmp_path: Path):
    store = open_store(str(tmp_path))
    job = Job.open(store, "generate", PARTS)
    changed = PARTS | {"config": {"seed": 1, "model": {"depth": 2, "width": 8}}, "inputs": {}}
    with pytest.raises(
        Conflict, match="nothing was made there yet, so delete it if no run is under way, or take"
    ):
        Job.open(store, "generate", changed)
    job.put_plain("checkpoint", b"something")
    with pytest.raises(Conflict) as refused:
        Job.open(store, "generate", changed)
    assert str(refused.value) == (
        f"{tmp_path} was begun with other settings (config.model.width: absent -> 8, config.seed: 0 -> 1,"
        " inputs: absent -> {}, inputs.vae: ab -> absent): take another output folder, or go back to what it "
        "was begun with"
    )
    with pytest.raises(Conflict, match="belongs to generate, not encode"):
        Job.open(store, "encode", PARTS)


def test_a_finished_job_says_what_it_lacks(store: Store):
    job = Job.open(store, "generate", PARTS)
    key = put_shards(job, 0, 1)[1].key
    job.put_plain("README.md", b"two")
    assert job.whole(Shards) is None
    manifest = job.finish(Shards())
    assert job.whole(Shards) == manifest
    assert job.damage(manifest) == []
    store.delete(key)
    damage(store, "README.md", b"too")
    assert job.damage(manifest) == [key, "README.md"]
    assert job.damage(manifest, ("data/",)) == ["README.md"]


def test_the_fingerprint_is_a_function_of_the_parts(tmp_path: Path):
    def of(parts: dict[str, object], stage: str = "generate") -> str:
        return Job.open(open_store(f"{tmp_path}/{len(list(tmp_path.iterdir()))}"), stage, parts).fingerprint

    reordered = {name: PARTS[name] for name in reversed(PARTS)}
    assert of(PARTS) == of(reordered) != of(NEWER)
    assert of(PARTS) != of(PARTS, "encode")


def test_an_accepted_upgrade_is_recorded_in_each_shard(store: Store):
    job = Job.open(store, "generate", PARTS)
    first = put_shards(job, 0)[0]
    with pytest.raises(Conflict, match=r"libraries.torch: 2.13 -> 2.14.*--accept-fingerprint"):
        Job.open(store, "generate", NEWER)
    newer = Job.open(store, "generate", NEWER, accept_fingerprint=True)
    assert newer.fingerprint == job.fingerprint != newer.accepted
    second = put_shards(newer, 0, 1)[1]
    assert first.fingerprint is None
    assert second.fingerprint == newer.accepted
    manifest = newer.finish(Shards())
    assert manifest.fingerprint == job.fingerprint
    assert manifest.accepted == (newer.accepted,)
    assert read_json(store, f"_accepted/{newer.accepted}.json")["parts"] == NEWER


def test_accepting_takes_new_libraries_and_nothing_else(tmp_path: Path):
    store = open_store(str(tmp_path))
    Job.open(store, "generate", PARTS)
    with pytest.raises(Conflict, match="config.seed"):
        Job.open(store, "generate", NEWER | {"config": {"seed": 1}}, accept_fingerprint=True)


# Objects, markers, manifest


def test_a_job_from_its_first_write_to_its_last(store: Store):
    job = pickle.loads(pickle.dumps(Job.open(store, "generate", PARTS)))
    assert job.manifest(Shards) is None
    assert job.marker("00000", Facts) is None
    assert list(job.names()) == []
    markers = put_shards(job, 2, 0, 1)
    assert sorted(job.names()) == ["00000", "00001", "00002"]
    assert job.marker("00002", Facts) == markers[0]
    assert list(job.markers(Facts)) == [markers[1], markers[2], markers[0]]
    job.put_plain("README.md", b"three\n")
    manifest = job.finish(Shards(rows=3), objects=markers)
    assert (
        manifest == job.manifest(Shards) == read_manifest(store, Shards) == read_manifest(store.uri, Shards)
    )
    assert manifest.facts.rows == 3
    assert manifest.parts == PARTS
    assert list(manifest_objects(store, manifest, Facts)) == markers
    assert manifest.listings[0].count == 3
    assert manifest.sha256 == hashlib.sha256(store.get("manifest.json")).hexdigest()


def test_markers_are_in_the_order_of_their_numbers_however_many(store: Store):
    job = Job.open(store, "generate", PARTS)
    by_number = put_shards(job, 99_998, 99_999, 100_000, 100_001)
    words = [job.put(name, f"data/{name}", b"word", Facts()) for name in ("a10", "a9")]
    assert list(job.markers(Facts)) == by_number + words
    assert list(manifest_objects(store, job.finish(Shards(rows=4)), Facts)) == by_number + words


def test_a_result_may_be_told_once_all_objects_were_taken(store: Store):
    job = Job.open(store, "generate", PARTS)
    put_shards(job, 0, 1, 2)
    taken: list[str] = []

    def objects() -> Iterator[Marker[Facts]]:
        for marker in job.markers(Facts):
            taken.append(marker.key)
            yield marker

    manifest = job.finish(lambda: Shards(rows=len(taken)), objects=objects())
    assert manifest.facts.rows == 3
    assert job.finish(Shards(rows=3)) == manifest


def test_a_marker_that_is_there_is_returned_and_nothing_written(tmp_path: Path):
    job = Job.open(open_store(str(tmp_path)), "generate", PARTS)
    marker = put_shards(job, 0)[0]
    assert job.put("00000", "data/elsewhere", b"something else", Facts()) == marker
    assert not (tmp_path / "data/elsewhere").exists()


def test_what_is_stored_is_canonical(tmp_path: Path):
    job = finished(open_store(str(tmp_path)))
    for path in (tmp_path / "_job.json", tmp_path / "manifest.json", *(tmp_path / "_markers").iterdir()):
        text = path.read_bytes()
        assert text == canonical(json.loads(text))
        assert text.endswith(b"}\n")
    with pytest.raises(ValueError, match="finite number|JSON compliant"):
        job.put("00009", "data/9", b"", Facts(loss=float("nan")))
    with pytest.raises(ValueError, match="cannot be facts"):
        job.finish(Shards(fingerprint="mine"))


def test_running_it_again_or_twice_changes_nothing(tmp_path: Path):
    store = open_store(str(tmp_path))
    finished(store)
    before = {info.key: info.etag for info in store.list()}
    finished(store)
    assert {info.key: info.etag for info in store.list()} == before


def test_runs_are_recorded_outside_the_result(tmp_path: Path):
    job = Job.open(open_store(str(tmp_path)), "generate", PARTS)
    with pytest.raises(ZeroDivisionError), job.run({"actors": 2}) as run:  # noqa: PT012 - the run's own body
        run.event("actor lost", node="a")
        run.end(shards=3)
        raise ZeroDivisionError("oops")
    folder = tmp_path / "_runs" / run.id
    start = json.loads((folder / "start.json").read_text())
    assert start["actors"] == 2
    assert start["host"]
    assert start["clock"]
    assert start["command"]
    assert json.loads((folder / "end.json").read_text())["shards"] == 3
    events = [json.loads(path.read_text()) for path in sorted((folder / "events").iterdir())]
    assert [event["event"] for event in events] == ["actor lost", "failed"]


def test_consumers_are_told_what_is_wrong(tmp_path: Path):
    store = open_store(str(tmp_path))
    with pytest.raises(
        NotFound, match="holds no job of ray-dit, where latents .encode. should be.*run ray-dit encode"
    ):
        read_manifest(store, Latents)
    job = Job.open(store, "model", PARTS)
    with pytest.raises(UserError, match="is unfinished: run ray-dit train again"):
        read_manifest(store, Model)
    job.finish(Shards())
    with pytest.raises(UserError, match="holds a model .model., where latents .encode. should be"):
        read_manifest(store, Latents)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json is damaged"):
        read_manifest(store, Model)


# Two writers with different bytes


def test_one_kind_of_machine_with_two_results_is_an_alarm(store: Store):
    job = Job.open(store, "generate", PARTS)
    job.store.put("data/00000", b"what this machine made before, its marker lost")
    with pytest.raises(HashAlarm, match="same kind of machine"):
        put_shards(job, 0)
    assert job.marker("00000", Facts) is None
    job.put_plain("checkpoint", b"one", computed=True)
    with pytest.raises(HashAlarm):
        job.put_plain("checkpoint", b"two", computed=True)


def test_between_kinds_of_machines_the_first_stays(store: Store, monkeypatch: pytest.MonkeyPatch):
    job = Job.open(store, "generate", PARTS)
    first = job.put("00000", "data/00000", b"first", Facts(rows=1))
    real = job.marker
    answers = iter([None])  # the other machine looked before the first had finished
    other_machine(monkeypatch)
    monkeypatch.setattr(Job, "marker", lambda self, name, facts: next(answers, real(name, facts)))
    assert job.put("00000", "data/00000", b"second", Facts(rows=1)) == first
    assert store.get("data/00000") == b"first"
    job.put_plain("checkpoint", b"one", computed=True)
    monkeypatch.setattr("ray_dit.ledger.writers.machine_kind", runs.machine_kind)
    job.put_plain("checkpoint", b"two", computed=True)
    assert store.get("checkpoint") == b"one"


def test_an_object_whose_writer_died_before_its_marker_is_made_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    job = Job.open(store, "generate", PARTS)
    put_shards(job, 1)
    job.store.put("data/00000", b"of a machine that died")
    other_machine(monkeypatch)
    impatient = Job(job.store, job.stage, job.fingerprint, settle_seconds=0.0)
    marker = put_shards(impatient, 0)[0]
    assert store.get("data/00000") == shard(0)
    assert store.sha256("data/00000") == marker.sha256


class FlippingStore(LocalStore):
    """Each object is read with other bytes, and more of them, the first ``wrong`` times."""

    wrong = 1
    reads: ClassVar[Counter[str]] = Counter()

    def open_file(self, key: str) -> BinaryIO:
        with super().open_file(key) as file:
            data = file.read()
        self.reads[key] += 1
        return io.BytesIO(data if self.reads[key] > self.wrong else data.replace(b'"rows"', b'"rowss"'))


def test_a_listing_is_held_against_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = finished(open_store(str(tmp_path))).manifest(Shards)
    assert manifest is not None
    store = FlippingStore(str(tmp_path))
    assert [marker.facts.to_json() for marker in manifest_objects(store, manifest, Facts)] == 3 * [
        {"rows": 1}
    ]
    monkeypatch.setattr(FlippingStore, "wrong", 1000)
    with pytest.raises(Damaged, match=r"manifest/objects.jsonl does not hold what was written there"):
        list(manifest_objects(store, manifest, Facts))


# Generations


def extend(store: Store, parts: Any, **options: Any) -> Job:
    return Job.extend(store, "generate", parts, may_change=("config.images",), **options)


def test_an_extension_stands_beside_what_it_extends(store: Store):
    base = finished(store).manifest(Shards)
    assert base is not None
    before = {info.key: info.etag for info in store.list()}
    job = extend(store, LONGER)
    assert job.generation == 1
    assert job.prefix == "g01-"
    put_shards(job, 3)
    assert read_manifest(store, Shards) == base, "an unfinished extension is not seen"
    again = extend(store, LONGER)
    assert again.marker("00003", Facts) is not None
    put_shards(again, 4)
    manifest = again.finish(Shards(rows=5))
    assert read_manifest(store, Shards) == manifest != base
    keys = [marker.key for marker in manifest_objects(store, manifest, Facts)]
    assert keys == ["data/00000", "data/00001", "data/00002", "data/g01-00003", "data/g01-00004"]
    assert before.items() <= {info.key: info.etag for info in store.list()}.items()
    assert manifest.extends == base.sha256
    assert list(verify(store)) == []
    assert extend(store, LONGER).manifest(Shards) == manifest
    assert extend(store, EVEN_LONGER).generation == 2


def test_only_one_extension_at_a_time_and_only_of_finished_jobs(tmp_path: Path):
    store = open_store(str(tmp_path))
    with pytest.raises(NotFound, match="holds no job of ray-dit"):
        extend(store, PARTS)
    job = Job.open(store, "generate", PARTS)
    with pytest.raises(UserError, match="unfinished"):
        extend(store, PARTS)
    job.finish(Shards())
    extend(store, LONGER)
    with pytest.raises(Conflict, match="config.images: 5 -> 6"):
        extend(store, EVEN_LONGER)


def test_a_job_has_99_extensions_at_most(tmp_path: Path):
    store = open_store(str(tmp_path))
    Job.open(store, "generate", PARTS).finish(Shards())
    for images in range(1, 100):
        extend(store, PARTS | {"config": PARTS["config"] | {"images": images}}).finish(Shards())
    with pytest.raises(UserError, match="has been extended 99 times"):
        extend(store, PARTS | {"config": PARTS["config"] | {"images": 100}})
    assert store.head("_job-g100.json") is None
    assert list(verify(store)) == []


def test_a_consumer_keeps_to_the_generation_it_has_begun_with(store: Store):
    manifests = [finished(store).manifest(Shards)]
    for number, parts in enumerate((LONGER, EVEN_LONGER), start=1):
        job = extend(store, parts)
        put_shards(job, 2 + number)
        manifests.append(job.finish(Shards(rows=3 + number)))
    for manifest in manifests:
        assert manifest is not None
        assert tied_manifest(store, Shards, manifest.sha256) == manifest
    assert (
        tied_manifest(store, Shards, None) == tied_manifest(store.uri, Shards, "of another") == manifests[-1]
    )


def test_an_abandoned_extension_is_removed_alone(tmp_path: Path):
    store = open_store(str(tmp_path))
    finished(store)
    before = {info.key for info in store.list()}
    with pytest.raises(UserError, match="no unfinished extension"):
        list(abandon(store))
    job = extend(store, LONGER)
    put_shards(job, 3)
    job.put_plain("plan-g01.parquet", b"plan")
    assert len(list(abandon(store))) >= 3
    assert {info.key for info in store.list() if not info.key.startswith("_runs/")} == {
        key for key in before if not key.startswith("_runs/")
    }
    other = extend(store, EVEN_LONGER)
    assert other.generation == 1
    other.put("00003", "data/g01-00003", b"of another extension", Facts())


def test_an_extension_differs_in_what_it_may_and_nothing_else(tmp_path: Path):
    store = open_store(str(tmp_path))
    finished(store)
    before = [info.key for info in store.list()]
    assert extend(store, PARTS).generation == 0, "nothing is to be added"
    seeded = PARTS | {"config": LONGER["config"] | {"seed": 1}}
    with pytest.raises(
        Conflict, match=r"can't be extended .* \(config.seed: 0 -> 1\): give what it was made with"
    ):
        extend(store, seeded)
    newer = LONGER | {"libraries": {"torch": "2.14"}}
    with pytest.raises(
        Conflict, match=r"libraries.torch: 2.13 -> 2.14\): go back .* --accept-fingerprint to extend"
    ):
        extend(store, newer)
    assert [info.key for info in store.list()] == before
    assert extend(store, newer, accept_fingerprint=True).generation == 1


def test_the_generation_of_some_settings_is_found_again(tmp_path: Path):
    store = open_store(str(tmp_path))
    assert generation_of(store, PARTS, Comparison()) == 0
    finished(store)
    assert generation_of(store, LONGER, Comparison()) == 0, "none of it: the newest says what differs"
    job = extend(store, LONGER)
    for _ in range(2):
        assert [generation_of(store, parts, Comparison()) for parts in (PARTS, LONGER, EVEN_LONGER)] == [
            0,
            1,
            1,
        ]
        put_shards(job, 3)
        job.finish(Shards(rows=4))


# Verify, repair, clean


def damage(store: Store, key: str, data: bytes | None) -> None:
    store.delete(key)
    if data is not None:
        store.put(key, data)


def rebuilt(folder: Store, marker: Marker[Facts]) -> dict[str, bytes]:
    return {marker.key: shard(int(marker.key[-5:]))}


def found_by_verify(store: Store, tally: Tally | None = None) -> list[tuple[str, str, str]]:
    """Folder, key and complaint, sorted."""
    return sorted(
        (problem.store.uri.removeprefix(store.uri), problem.key, problem.what)
        for problem in verify(store, tally=tally)
    )


def test_verify_finds_and_repair_fixes_what_is_missing_or_damaged(store: Store):
    finished(store, range(20))
    model = Job.open(store.child("model"), "model", PARTS)
    put_shards(model, 0)
    model.finish(Model())
    damage(store, "data/00003", shard(3)[:-1] + b"!")
    damage(store, "data/00011", None)
    damage(store, "model/data/00000", b"short")
    tally = Tally()
    found = found_by_verify(store, tally)
    expected = [
        ("", "data/00003", "damaged"),
        ("", "data/00011", "missing"),
        ("/model", "data/00000", "damaged"),
    ]
    assert found == expected
    assert tally == Tally(jobs=2, objects=21, bytes=sum(len(shard(number)) for number in [*range(20), 0]))
    assert len(list(repair(store, rebuilt))) == 3
    assert list(verify(store)) == []


def test_repair_refuses_other_bytes_than_were_promised(tmp_path: Path):
    store = open_store(str(tmp_path))
    finished(store)
    damage(store, "data/00001", b"damaged")
    with pytest.raises(UserError, match="this machine makes other bytes"):
        list(repair(store, lambda folder, marker: {marker.key: b"not it"}))
    assert store.get("data/00001") == b"damaged"


def test_repair_leaves_what_somebody_else_repaired_meanwhile(tmp_path: Path):
    store = open_store(str(tmp_path))
    finished(store)
    damage(store, "data/00001", b"damaged")

    def rebuild(folder: Store, marker: Marker[Facts]) -> dict[str, bytes]:
        damage(store, "data/00001", shard(1))
        return {marker.key: shard(1)}

    repaired = list(repair(store, rebuild))
    assert [problem.key for problem in repaired] == ["data/00001"]
    assert list(verify(store)) == []


UNFINISHED = "unfinished: run ray-dit generate again, and it goes on where it stopped"


@pytest.mark.parametrize(
    ("key", "data", "what"),
    [
        ("manifest/objects.jsonl", b"{}\n", "damaged"),
        ("manifest/objects.jsonl", None, "missing"),
        ("manifest/plain.jsonl", b"{}\n", "damaged"),
        ("manifest/plain.jsonl", None, "missing"),
        ("manifest.json", b"{}", "damaged"),
        ("manifest.json", None, UNFINISHED),
    ],
)
def test_a_rerun_makes_a_damaged_listing_or_manifest_anew(
    tmp_path: Path, key: str, data: bytes | None, what: str
):
    store = open_store(str(tmp_path))
    before = finished(store).manifest(Shards)
    damage(store, key, data)
    assert found_by_verify(store) == [("", key, what)]
    list(repair(store, rebuilt))
    assert Job.open(store, "generate", PARTS).whole(Shards) is None
    assert finished(store).manifest(Shards) == before
    assert list(verify(store)) == []


def test_a_changed_fingerprint_is_found(tmp_path: Path):
    store = open_store(str(tmp_path))
    Job.open(store, "generate", PARTS)
    job = read_json(store, "_job.json")
    damage(store, "_job.json", canonical(job | {"parts": NEWER}))
    assert [problem.what for problem in verify(store)] == [
        "its parts do not have its fingerprint",
        UNFINISHED,
    ]


def test_there_must_be_a_job_to_verify(tmp_path: Path):
    with pytest.raises(NotFound, match="holds no job"):
        list(verify(open_store(str(tmp_path))))


def test_gc_takes_old_leavings_and_nothing_else(store: Store):
    finished(store)
    before = {info.key for info in store.list()}
    store.put("_check/1000-abc", b"1")
    store.put("_check/99999999999-abc", b"1")
    assert list(gc(store)) == [store.where("_check/1000-abc")]
    assert {info.key for info in store.list()} == before | {"_check/99999999999-abc"}
