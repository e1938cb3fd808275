"""The plans in a latents folder: which one counts, what an extension adds, what is made again."""

import hashlib
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_dit.config import ImagesConfig
from ray_dit.errors import Damaged, NotFound, UserError
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.latent_plans import (
    as_found,
    await_plan,
    begun_plan,
    extension_plan,
    generation_of_key,
    generation_plan,
)
from ray_dit.folders.quarantine import quarantine_key
from ray_dit.folders.reading import load_images
from ray_dit.folders.stored_plans import Planned, plan_key, read_plan, read_plans, versions_key
from ray_dit.ledger.job import Job
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support import seaweed
from tests.support.results import latent_facts, latents_result
from tests.support.tiny import SIZE, flip_bit, write_pictures


def parts(plan: ImagePlan, rules: int = 2) -> dict[str, Any]:
    return {"config": {}, "inputs": {"images": plan.sha256}} | ({"rules": rules} if rules > 1 else {})


def begun(store: Store, plan: ImagePlan, generation: int = 0, rules: int = 2) -> Job:
    return Job.open(store, "encode", parts(plan, rules), generation=generation)


def stored(store: Store, images: ImagesConfig) -> ImagePlan:
    """The plan of a job that was begun and killed."""
    plan = plan_images(images)
    return Planned.new(plan).stored(begun(store, plan)).plan


def finish(store: Store, plan: ImagePlan, generation: int = 0) -> None:
    job = begun(store, plan, generation)
    Planned.new(plan, generation).stored(job)
    job.put("00000", f"latents/{job.prefix}00000.parquet", b"shard", latent_facts(0, len(plan.keys)))
    job.finish(latents_result())


def picture(images: ImagesConfig, key: str, size: int = SIZE) -> None:
    """One image more."""
    place = Path(images.uri, key)
    write_pictures(place.parent.parent / ".new", {"one": 1}, size)
    place.parent.mkdir(exist_ok=True)
    (place.parent.parent / ".new/one/00.png").rename(place)
    (place.parent.parent / ".new/one").rmdir()
    (place.parent.parent / ".new").rmdir()


def test_names_of_plans_and_quarantines() -> None:
    assert [plan_key(), plan_key(1)] == ["plan.parquet", "plan-g01.parquet"]
    assert [quarantine_key(), quarantine_key(12)] == ["quarantine.parquet", "quarantine-g12.parquet"]
    keys = ["latents/00003.parquet", "latents/g01-00000.parquet", "latents/g12-100000.parquet"]
    assert [generation_of_key(key) for key in keys] == [0, 1, 12]


def test_a_job_that_was_begun_keeps_its_plan(folder: Store, images: ImagesConfig) -> None:
    assert begun_plan(folder, images) is None
    plan = stored(folder, images)
    Path(images.uri, "left/00.png").unlink()
    picture(images, "left/new.png")
    found = begun_plan(folder, images)
    assert found is not None
    assert (found.plan.keys, found.rules, found.is_stored, found.generation) == (plan.keys, 2, True, 0)
    assert found.plan.sha256 == plan.sha256 != plan_images(images).sha256


def test_another_stages_folder_has_no_plan(folder: Store, images: ImagesConfig) -> None:
    Job.open(folder, "generate", {})
    assert begun_plan(folder, images) is None


@pytest.mark.parametrize("marker", ["kept", "lost"])
@pytest.mark.parametrize("damage", [flip_bit, Path.unlink])
def test_a_lost_plan_is_made_again_of_the_same_images(
    folder: Store, images: ImagesConfig, damage: Callable[[Path], None], marker: str
) -> None:
    plan = stored(folder, images)
    damage(Path(folder.uri, "plan.parquet"))
    if marker == "lost":
        Path(folder.uri, "_plain/plan.parquet.json").unlink()
    found = begun_plan(folder, images)
    assert found is not None
    assert not found.is_stored
    assert found.data == plan.to_bytes()
    again = found.stored(begun(folder, plan))
    assert again.data == folder.get("plan.parquet") == plan.to_bytes()


def test_a_plan_of_before_is_made_again_as_it_was(folder: Store, images: ImagesConfig) -> None:
    plan = replace(plan_images(images), sizes=None, versions=None)
    job = begun(folder, plan, rules=1)
    Planned.new(plan).stored(job)
    found = begun_plan(folder, images)
    assert found is not None
    assert (found.rules, found.plan.sizes) == (1, None)
    flip_bit(Path(folder.uri, "plan.parquet"))
    found = begun_plan(folder, images)
    assert found is not None
    assert found.data == plan.to_bytes()


def test_a_lost_plan_of_other_images_is_said_where_something_was_made_by_it(
    folder: Store, images: ImagesConfig
) -> None:
    plan = stored(folder, images)
    picture(images, "left/new.png")
    Path(folder.uri, "plan.parquet").unlink()
    with pytest.raises(
        Damaged, match="plan.parquet is missing .* as they are now do not give it again: restore it"
    ):
        begun_plan(folder, images)
    Path(folder.uri, "_plain/plan.parquet.json").unlink()
    assert begun_plan(folder, images) is None, "nothing was made: the folder can be deleted"
    begun(folder, plan).put("00000", "latents/00000.parquet", b"shard", latent_facts(0, 1))
    with pytest.raises(Damaged, match="do not give it again"):
        begun_plan(folder, images)


def test_a_flipped_plan_without_a_marker_is_not_taken_for_one(folder: Store, images: ImagesConfig) -> None:
    plan = stored(folder, images)
    Path(folder.uri, "_plain/plan.parquet.json").unlink()
    place = Path(folder.uri, "plan.parquet")
    for at in range(0, len(plan.to_bytes()), 7):
        data = bytearray(plan.to_bytes())
        data[at] ^= 1
        place.write_bytes(data)
        found = begun_plan(folder, images)
        assert found is not None
        assert (found.is_stored, found.data) == (False, plan.to_bytes()), at
    assert Planned.new(plan).stored(begun(folder, plan)).data == plan.to_bytes() == place.read_bytes()


def test_of_two_drivers_the_first_plan_counts(folder: Store, images: ImagesConfig) -> None:
    """Both find the same keys and sizes, but objects that were written again between their listings."""
    plan = plan_images(images)
    others = replace(plan, versions=np.arange(10))
    job = begun(folder, plan)
    results: list[bytes] = []
    barrier = threading.Barrier(2)

    def store(one: ImagePlan) -> None:
        barrier.wait()
        results.append(Planned.new(one).stored(job).data)

    threads = [threading.Thread(target=store, args=(one,)) for one in (plan, others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [folder.get("plan.parquet")] * 2


def test_the_plan_of_another_driver_is_waited_for(folder: Store, images: ImagesConfig) -> None:
    plan = plan_images(images)
    begun(folder, plan)
    picture(images, "left/new.png")
    assert await_plan(folder, images, seconds=0.3) is None
    timer = threading.Timer(0.5, lambda: Planned.new(plan).stored(begun(folder, plan)))
    timer.start()
    found = await_plan(folder, images, seconds=20.0)
    timer.join()
    assert found is not None
    assert found.plan.sha256 == plan.sha256


# Extensions


def test_an_extension_plans_what_no_generation_has(folder: Store, images: ImagesConfig) -> None:
    first = plan_images(images)
    finish(folder, first)
    assert extension_plan(folder, images, 1) is None
    for key in ("left/new.png", "aaa/0.png", "b10/0.png", "b9/0.png"):
        picture(images, key)
    Path(images.uri, "left/00.png").unlink()
    second = extension_plan(folder, images, 1)
    assert second is not None
    assert second.keys == ("aaa/0.png", "b10/0.png", "b9/0.png", "left/new.png")
    assert second.classes == ("left", "right", "aaa", "b9", "b10")
    assert [second.classes[label] for label in second.labels] == ["aaa", "b10", "b9", "left"]
    again = dict(zip(plan_images(images).keys, plan_images(images).heldout.tolist(), strict=True))
    assert [again[key] for key in second.keys] == second.heldout.tolist()
    finish(folder, second, 1)
    assert extension_plan(folder, images, 2) is None
    picture(images, "left/00.png")  # it was planned before, whatever became of it
    assert extension_plan(folder, images, 2) is None
    picture(images, "right/new.png")
    third = extension_plan(folder, images, 2)
    assert third is not None
    assert (third.keys, third.classes) == (("right/new.png",), second.classes)
    assert [plan.keys for plan in read_plans(folder, images.uri)] == [first.keys, second.keys]
    assert read_plan(folder, 1, images.uri).sizes is not None


def test_the_lost_plan_of_any_generation_is_made_again(folder: Store, images: ImagesConfig) -> None:
    plans = [plan_images(images)]
    finish(folder, plans[0])
    for number, key in ((1, "aaa/0.png"), (2, "left/new.png")):
        picture(images, key)
        plan = extension_plan(folder, images, number)
        assert plan is not None
        finish(folder, plan, number)
        plans.append(plan)
    for number, plan in enumerate(plans):
        flip_bit(Path(folder.uri, plan_key(number)))
        found = generation_plan(folder, images, number)
        assert found is not None
        assert found.data == plan.to_bytes()
        Path(folder.uri, plan_key(number)).write_bytes(found.data)


def test_an_extension_killed_before_its_plan_was_stored_hides_nothing(
    folder: Store, images: ImagesConfig
) -> None:
    finish(folder, plan_images(images))
    picture(images, "aaa/0.png")
    plan = extension_plan(folder, images, 1)
    assert plan is not None
    begun(folder, plan, 1)
    found = begun_plan(folder, images)
    assert found is not None
    assert (found.generation, found.data) == (1, plan.to_bytes())
    picture(images, "aaa/1.png")
    found = begun_plan(folder, images)
    assert found is not None
    assert found.generation == 0


# Other images at the same place


def test_other_images_at_the_place_are_told(folder: Store, images: ImagesConfig, tmp_path: Path) -> None:
    plan = stored(folder, images)
    for key in plan.keys[:-1]:
        Path(images.uri, key).unlink()
    assert as_found(folder, plan) is plan, "one of those looked for is there"
    Path(images.uri, plan.keys[-1]).write_bytes(b"another")
    refused = "holds the latents of other images than those in .*, where none of 10 .* --images.uri, or"
    with pytest.raises(UserError, match=refused):
        as_found(folder, plan)
    with pytest.raises(UserError, match=refused):
        as_found(folder, replace(plan, uri=str(tmp_path / "nowhere")))
    finish(folder, plan)
    picture(images, "left/new.png")
    with pytest.raises(UserError, match="where none of 1 that were looked for is as it was"):
        extension_plan(folder, images, 1)


def test_a_plan_of_before_looks_for_names(folder: Store, images: ImagesConfig) -> None:
    plan = replace(stored(folder, images), sizes=None, versions=None)
    for key in plan.keys:
        Path(images.uri, key).write_bytes(b"another")
    assert as_found(folder, plan) is plan
    for key in plan.keys:
        Path(images.uri, key).unlink()
    with pytest.raises(UserError, match="other images"):
        as_found(folder, plan)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_environment")
def test_on_s3_another_version_is_changed_and_a_copy_is_none(folder: Store, images: ImagesConfig) -> None:
    bucket = open_store(seaweed.fresh_uri())
    for key in plan_images(images).keys:
        bucket.put(key, Path(images.uri, key).read_bytes())
    plan = plan_images(images.model_copy(update={"uri": bucket.uri}))
    assert plan.versions is not None
    assert plan.versions.all()
    assert plan.sha256 == plan_images(images).sha256
    assert as_found(folder, plan) is plan
    assert load_images(plan, range(10))[2] == []
    data = bucket.get(plan.keys[3])
    bucket.delete(plan.keys[3])
    bucket.put(plan.keys[3], data[:-1] + b"x")
    bucket.delete(plan.keys[5])
    bad = load_images(plan, range(10))[2]
    assert [(entry.key, entry.code) for entry in bad] == [(plan.keys[3], "changed"), (plan.keys[5], "gone")]
    assert as_found(folder, plan) is plan
    copied = replace(plan, versions=plan.versions + 1)  # as where a copy in several parts has other ETags
    found = as_found(folder, copied)
    assert found.versions is None
    assert load_images(found, [0])[2] == []


@pytest.mark.s3
@pytest.mark.usefixtures("s3_environment")
def test_versions_are_noted_beside_the_plan_that_is_the_same_elsewhere(
    folder: Store, images: ImagesConfig, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = open_store(seaweed.fresh_uri())
    for key in plan_images(images).keys:
        bucket.put(key, Path(images.uri, key).read_bytes())
    there = images.model_copy(update={"uri": bucket.uri})
    planned = Planned.new(plan_images(there))
    assert planned.data == Planned.new(plan_images(images)).data
    planned.stored(begun(folder, planned.plan))
    noted = Path(folder.uri, versions_key(hashlib.sha256(planned.data).hexdigest()))
    whole = noted.read_bytes()
    versions = planned.plan.versions
    assert versions is not None

    def check(plan: ImagePlan) -> None:
        assert plan.versions is not None
        assert plan.versions.tolist() == versions.tolist()

    check(read_plan(folder, 0, bucket.uri))
    begun_again = begun_plan(folder, there)
    assert begun_again is not None
    check(begun_again.plan)
    later = replace(planned, plan=replace(planned.plan, versions=versions + 1))
    check(later.stored(begun(folder, planned.plan)).plan)
    for place in (whole.index(versions[:4].tobytes()) + 9, len(whole) - 6):  # a version, the length
        noted.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert read_plan(folder, 0, bucket.uri).versions is None
        assert "known by their sizes alone" in caplog.text
        caplog.clear()
    noted.unlink()
    assert read_plan(folder, 0, bucket.uri).versions is None
    assert caplog.text == ""


def test_sixteen_images_are_looked_for_at_most(folder: Store, tmp_path: Path) -> None:
    write_pictures(tmp_path / "many", {"one": 40})
    plan = plan_images(ImagesConfig(uri=str(tmp_path / "many"), size=SIZE))
    for key in plan.keys:
        Path(plan.uri, key).unlink()
    with pytest.raises(UserError, match="none of 16 that were looked for"):
        as_found(folder, plan)


def test_a_lost_plan_is_made_again_with_the_versions_that_were_noted(
    folder: Store, images: ImagesConfig
) -> None:
    """Keys and sizes are the same, and so is the plan; what became of the objects meanwhile is still seen."""
    plan = replace(plan_images(images), versions=np.arange(1, 11))
    Planned.new(plan).stored(begun(folder, plan))
    Path(folder.uri, "plan.parquet").unlink()
    again = begun_plan(folder, images)
    assert again is not None
    assert again.plan.versions is not None
    assert again.plan.versions.tolist() == list(range(1, 11))


# Other layouts than a folder of files


def pack(archive: Path, images: ImagesConfig, *keys: str, prefix: str = "") -> None:
    """A tar of these images."""
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        for key in keys:
            tar.add(Path(images.uri, key), f"{prefix}{key}")


def test_archives_are_planned_made_again_and_extended_as_such(
    folder: Store, images: ImagesConfig, tmp_path: Path
) -> None:
    keys = plan_images(images).keys
    pack(tmp_path / "tars/a.tar", images, *keys)
    inside = images.model_copy(update={"uri": str(tmp_path / "tars")})
    first = plan_images(inside)
    finish(folder, first)
    assert as_found(folder, first) is first
    for one in ("a.tar", "*.tar"):
        plan = replace(first, uri=f"{inside.uri}/{one}")
        assert as_found(folder, plan) is plan, "one archive, or those of a pattern"
        assert load_images(plan, [0])[2] == []
    flip_bit(Path(folder.uri, "plan.parquet"))
    found = begun_plan(folder, inside)
    assert found is not None
    assert found.data == first.to_bytes()
    Path(folder.uri, "plan.parquet").write_bytes(found.data)
    picture(images, "aaa/0.png")
    picture(images, "left/new.png")
    pack(tmp_path / "tars/b.tar", images, "aaa/0.png", "left/new.png")
    second = extension_plan(folder, inside, 1)
    assert second is not None
    assert (second.keys, second.format) == (("aaa/0.png", "left/new.png"), "tar")
    assert second.classes == ("left", "right", "aaa")
    assert load_images(second, range(2))[2] == []
    finish(folder, second, 1)
    assert extension_plan(folder, inside, 2) is None
    for number, plan in enumerate((first, second)):
        flip_bit(Path(folder.uri, plan_key(number)))
        found = generation_plan(folder, inside, number)
        assert found is not None
        assert found.data == plan.to_bytes()
        Path(folder.uri, plan_key(number)).write_bytes(found.data)
    Path(inside.uri, "a.tar").unlink()
    with pytest.raises(NotFound, match="a.tar is gone since its images were planned"):
        load_images(first, [0])
    assert as_found(folder, second) is second


def test_an_image_whose_name_changes_with_its_neighbours_is_not_encoded_twice(
    folder: Store, images: ImagesConfig, tmp_path: Path
) -> None:
    """A folder that all entries share is left out of keys, until there is another."""
    keys = plan_images(images).keys
    pack(tmp_path / "tars/a.tar", images, *keys, prefix="set/")
    inside = images.model_copy(update={"uri": str(tmp_path / "tars")})
    first = plan_images(inside)
    assert first.keys == keys
    finish(folder, first)
    picture(images, "left/new.png")
    pack(tmp_path / "tars/b.tar", images, "left/new.png")
    names = plan_images(inside).keys
    assert not {*names} & {*keys}, "all have other names now"
    second = extension_plan(folder, inside, 1)
    assert second is not None
    assert len(second.keys) == 1
    assert second.object_key(0) == "b.tar"


def test_files_whose_keys_are_no_names_are_set_aside_one_by_one(images: ImagesConfig) -> None:
    plan = plan_images(images)
    originals = np.array([f"images/{key}" for key in plan.keys])
    moved = replace(plan, uri=str(Path(images.uri).parent), places={"object": originals})
    assert load_images(moved, range(10))[2] == []
    Path(images.uri, plan.keys[2]).unlink()
    assert [(entry.key, entry.code) for entry in load_images(moved, range(10))[2]] == [(plan.keys[2], "gone")]
