"""verify finds whatever was changed, says what is unfinished, and what can be made again is put back."""

import json
import random
import shutil
from pathlib import Path

import pytest

from ray_dit.errors import UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import repair, verify, verify_all
from ray_dit.ledger.results import Facts, Marker
from ray_dit.ledger.stored_json import canonical, sealed
from ray_dit.ledger.verification import FOREIGN
from ray_dit.results import RESULTS, DatasetResult
from ray_dit.storage.local import LocalStore
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support.results import dataset_result, image_facts

PARTS = {"config": {"seed": 0}}
GOLDEN = Path(__file__).parents[1] / "golden/folders"
FLIPS = 12
"""Bits changed in each object, one at a time."""
README = b"two shards"


def shard(number: int) -> bytes:
    return f"shard {number}".encode() * 20


def made(folder: Path, *, finish: bool = True) -> LocalStore:
    """A dataset of two shards with a card, and a run on record."""
    job = Job.open(open_store(str(folder)), "generate", PARTS)
    with job.run({"actors": 2}) as run:
        for number in range(2):
            job.put(f"{number:05d}", f"data/{number}", shard(number), image_facts(number, 1))
        job.put_plain("README.md", README)
        run.end()
    if finish:
        job.finish(result())
    store = open_store(str(folder))
    assert isinstance(store, LocalStore)
    return store


def result() -> DatasetResult:
    return dataset_result(rows=2, pixels_sha256=dataset_result().expected({}, [])["pixels_sha256"])


def problems(store: Store) -> list[str]:
    return [f"{problem.key}: {problem.what}" for problem in verify(store, results=RESULTS)]


def rebuilt(folder: Store, marker: Marker[Facts]) -> dict[str, bytes] | None:
    return {marker.key: shard(int(marker.key[-1]))} if marker.key.startswith("data/") else None


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


UNFINISHED = "manifest.json: unfinished: run ray-dit generate again, and it goes on where it stopped"


def test_any_flipped_bit_of_an_extended_job_is_found(tmp_path: Path) -> None:
    store = made(tmp_path)
    extended(store)
    chance = random.Random(0)
    for path in files(tmp_path):
        key, whole = str(path.relative_to(tmp_path)), path.read_bytes()
        path.write_bytes(flip(whole, chance.randrange(8 * len(whole))))
        assert any(found.startswith(key) for found in problems(store)), key
        path.write_bytes(whole)
    assert problems(store) == []


@pytest.mark.parametrize("finish", [True, False])
def test_any_flipped_bit_is_found_and_put_right(tmp_path: Path, finish: bool) -> None:
    made(tmp_path / "pristine", finish=finish)
    chance = random.Random(0)
    for number, original in enumerate(files(tmp_path / "pristine")):
        key = str(original.relative_to(tmp_path / "pristine"))
        store = open_store(str(tmp_path / f"{number}"))
        shutil.copytree(tmp_path / "pristine", store.uri)
        path, whole = Path(store.uri) / key, original.read_bytes()
        for bit in chance.sample(range(8 * len(whole)), FLIPS):
            path.write_bytes(flip(whole, bit))
            assert any(found.startswith(key) for found in problems(store)), (key, bit)
        made_again(store)
        assert problems(store) == []
        if not key.startswith("_runs/"):  # a damaged note on a run is deleted
            assert path.read_bytes() == whole, key


def flip(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def made_again(store: Store) -> None:
    """What a stage does with --repair."""
    Job.open(store, "generate", PARTS)
    list(repair(store, rebuilt, {"README.md": lambda: README}, results=RESULTS))
    made(Path(store.uri))


def test_an_unfinished_job_is_no_success(tmp_path: Path) -> None:
    store = made(tmp_path, finish=False)
    for path in (tmp_path / "_markers").iterdir():
        path.unlink()
    told: list[str] = []
    with pytest.raises(UserError, match="is not whole: do what is said of the 1 objects above"):
        verify_all(store.uri, RESULTS, tell=lambda problem: told.append(str(problem)))
    assert told == [f"{tmp_path}/{UNFINISHED}"]
    made(tmp_path)
    assert verify_all(store.uri, RESULTS, tell=print).startswith("verified: 3 objects, 0.0 MB in 1 jobs")


def test_so_is_an_extension_that_was_begun(tmp_path: Path) -> None:
    store = made(tmp_path)
    Job.extend(store, "generate", PARTS | {"config": {"seed": 1}}, may_change=["config.seed"])
    assert [problem.split(":")[1].strip() for problem in problems(store)] == ["unfinished"]


LONGER = {"config": {"seed": 1}}
NEW_README = b"three shards"


def extended(store: Store, *, finish: bool = True) -> Job:
    """A generation more, of one shard; the README is another."""
    job = Job.extend(store, "generate", PARTS | LONGER, may_change=["config.seed"])
    job.put("00002", "data/g01-2", shard(2), image_facts(2, 1))
    if finish:
        job.put_plain("README.md", NEW_README)
        facts = [image_facts(number, 1).to_json() for number in range(3)]
        job.finish(dataset_result(**dataset_result().expected({}, facts)))
    return job


STATES = ("before", "marked", "replaced", "finished")


@pytest.mark.parametrize("state", STATES)
def test_the_replaced_readme_is_known_at_every_point_of_an_extension(tmp_path: Path, state: str) -> None:
    store, folder = made(tmp_path / "whole"), tmp_path / "folder"
    extended(store)
    shutil.copytree(store.uri, folder)
    marker, readme, store = (
        folder / "_plain-g01/README.md.json",
        folder / "README.md",
        open_store(str(folder)),
    )
    if state != "finished":
        (folder / "manifest-g01.json").unlink()
        shutil.rmtree(folder / "manifest")
        shutil.copytree(tmp_path / "whole/manifest", folder / "manifest")
        for path in (folder / "manifest").glob("*-g01*"):
            path.unlink()
    if state in STATES[:2]:
        readme.write_bytes(README)
    if state == "before":
        marker.unlink()
    left = [] if state == "finished" else [UNFINISHED.replace("manifest", "manifest-g01")]
    assert problems(store) == left
    # a writer of the first generation that was asleep, and one who runs its command again, leave it as it is
    first = Job.open(store, "generate", PARTS)
    first.put_plain("README.md", README)
    assert list(first.restore_plain({"README.md": lambda: README})) == []
    assert readme.read_bytes() == (README if state in STATES[:2] else NEW_README)
    readme.write_bytes(b"neither")
    assert "README.md: damaged" in problems(store)
    extended(store)
    assert problems(store) == []
    assert readme.read_bytes() == NEW_README


def change_rows(folder: Path, *, seal: bool) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes()) | {"rows": 3}
    path.write_bytes(canonical(sealed(manifest) if seal else manifest))


def test_a_changed_number_is_found_by_the_seal_and_by_the_markers(tmp_path: Path) -> None:
    store = made(tmp_path)
    change_rows(tmp_path, seal=False)
    assert problems(store) == ["manifest.json: damaged"]
    change_rows(tmp_path, seal=True)
    assert problems(store) == ["manifest.json: its rows is 3, which does not fit its objects: 2"]
    made_again(store)
    assert problems(store) == []


def test_the_numbers_of_a_folder_of_before_are_checked_too(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "encode", tmp_path / "encode")
    store = open_store(str(tmp_path / "encode"))
    shards = [f"latents/{number:05d}.parquet: missing" for number in range(3)]
    assert problems(store) == shards
    path = tmp_path / "encode/manifest.json"
    whole = json.loads(path.read_bytes())
    for name, value in (
        ("rows", 11),
        ("train_rows", 11),
        ("bad", 1),
        ("mean", [0.0] * 4),
        ("std", [1.0] * 4),
    ):
        path.write_bytes(canonical(whole | {name: value}))
        assert len(found := problems(store)) == 4
        assert found[0].startswith(f"manifest.json: its {name} is {value}")


def test_a_plain_object_that_is_missing_or_damaged_is_found_and_put_back(tmp_path: Path) -> None:
    store = made(tmp_path)
    (tmp_path / "README.md").write_bytes(b"too shards")
    assert problems(store) == ["README.md: damaged"]
    job = Job.open(store, "generate", PARTS)
    assert list(job.restore_plain({})) == []
    assert list(job.restore_plain({"README.md": lambda: README})) == ["README.md"]
    (tmp_path / "README.md").unlink()
    assert problems(store) == ["README.md: missing"]
    with pytest.raises(UserError, match="README.md: missing: it can't be made again here; restore it"):
        list(repair(store, rebuilt))
    with pytest.raises(UserError, match="this machine makes other bytes"):
        list(repair(store, rebuilt, {"README.md": lambda: b"other words"}))
    assert [problem.key for problem in repair(store, rebuilt, {"README.md": lambda: README})] == ["README.md"]
    assert problems(store) == []


def test_what_can_be_repaired_is_though_something_can_not(tmp_path: Path) -> None:
    store = made(tmp_path)
    for key in ("README.md", "data/0", "_markers/00001.json"):
        (tmp_path / key).write_bytes(b"rubbish")
    with pytest.raises(UserError, match="README.md: damaged: it can't be made again here"):
        list(repair(store, rebuilt))
    assert problems(store) == ["README.md: damaged"]


@pytest.mark.parametrize("finish", [True, False])
def test_a_damaged_description_is_known_by_the_manifest_or_by_the_writers(
    tmp_path: Path, finish: bool
) -> None:
    made(tmp_path, finish=finish)
    path = tmp_path / "_job.json"
    whole = path.read_bytes()
    path.write_bytes(b"{" + whole)
    made(tmp_path, finish=finish)
    assert path.read_bytes() == whole


def test_a_damaged_description_that_nothing_repeats_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    Job.open(store, "generate", PARTS)
    (tmp_path / "_job.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"_job.json is damaged: it is no JSON; .*restore it from a copy"):
        Job.open(store, "generate", PARTS)


def test_rays_own_notes_are_not_looked_at(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.put(f"{FOREIGN}x/state.json", b"not ours")
    assert problems(store) == []
