"""Plans in parts: a part is what the whole has, damage is found and put right, two drivers agree."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_dit.config import ImagesConfig
from ray_dit.errors import Damaged, UserError
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.latent_plans import as_found, begun_plan, extension_plan, made_again
from ray_dit.folders.plan_parts import AnyPlan, PlanInParts, head_bytes, plan_bytes, read_head
from ray_dit.folders.reading import load_images
from ray_dit.folders.stored_plans import Planned, part_key, read_plan, versions_key
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.storage.store import Store
from tests.support.results import latent_facts, latents_result
from tests.support.tiny import SIZE, flip_bit, write_pictures

ROWS = 3
"""Images of a part, of ten."""


def begun(store: Store, plan: AnyPlan, generation: int = 0) -> Job:
    parts = {"config": {}, "inputs": {"images": plan.sha256}, "rules": 3}
    return Job.open(store, "encode", parts, generation=generation)


def stored(store: Store, plan: ImagePlan, generation: int = 0) -> Planned:
    return Planned.new(plan, generation, ROWS).stored(begun(store, plan, generation))


def test_a_part_is_what_the_whole_has(folder: Store, images: ImagesConfig) -> None:
    plan = replace(plan_images(images), versions=np.arange(1, 11))
    planned = stored(folder, plan)
    found = read_plan(folder, 0, images.uri)
    assert isinstance(found, PlanInParts)
    assert isinstance(planned.plan, PlanInParts)
    assert [part.rows for part in found.listed] == [3, 3, 3, 1]
    assert (found.count, found.sha256, found.classes, found.size) == (10, plan.sha256, plan.classes, SIZE)
    for first in range(11):
        for stop in range(first, 12):
            ours, theirs = found.part(first, stop), plan.part(first, stop)
            assert ours.keys == theirs.keys
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert ours.heldout.tolist() == theirs.heldout.tolist()
            if ours.count:
                assert ours.to_bytes() == theirs.to_bytes()
                assert ours.versions is not None
                assert ours.versions.tolist() == list(range(first + 1, min(stop, 10) + 1))
    rows = np.array([0, 2, 3, 9])
    assert found.take(rows).to_bytes() == plan.take(rows).to_bytes()
    assert found.by_size().part(0, 10).versions is None
    assert found.stored_bytes() == plan.stored_bytes() > 0
    assert planned.stored_bytes() == sum(
        len(folder.get(key)) for key in ("plan.parquet", *(part_key(0, number) for number in range(4)))
    )
    assert len(load_images(found.by_size().part(2, 8), range(6))[0]) == 6


def test_a_plan_of_few_images_is_one_object_as_ever(folder: Store, images: ImagesConfig) -> None:
    plan = plan_images(images)
    assert plan_bytes(plan) == plan_bytes(plan, 10) == plan.to_bytes() != plan_bytes(plan, 9)
    Planned.new(plan).stored(begun(folder, plan))
    assert isinstance(read_plan(folder, 0, images.uri), ImagePlan)
    assert not list(folder.list("plan/"))


def test_where_an_object_lies_in_several_parts_it_is_counted_once(
    images: ImagesConfig, folder: Store
) -> None:
    plan = replace(plan_images(images), places={"object": np.array(["a.tar"] * 4 + ["b.tar"] * 6)})
    plan = replace(plan, sizes=np.array([7] * 4 + [5] * 6))
    assert plan.stored_bytes() == stored(folder, plan).plan.stored_bytes() == 12


def test_a_reader_keeps_a_few_parts_whatever_the_size(folder: Store, images: ImagesConfig) -> None:
    stored(folder, plan_images(images))
    found = read_plan(folder, 0, images.uri)
    assert isinstance(found, PlanInParts)
    assert found.part(0, 2).keys == found.part(0, 2).keys
    Path(folder.uri, part_key(0, 3)).unlink()
    assert found.part(0, 9).count == 9, "what is not asked for is not read"
    with pytest.raises(UserError, match="plan/00003.parquet"):
        found.part(8, 10)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        *(
            (part_key(0, number), what)
            for number in (1, 3)
            for what in ("flipped", "gone", "without a marker")
        ),
        ("plan.parquet", "without a marker"),  # of a lost head, ``ROWS`` are not known
    ],
)
def test_what_is_damaged_is_made_again_of_the_same_images(
    folder: Store, images: ImagesConfig, key: str, what: str
) -> None:
    plan = plan_images(images)
    stored(folder, plan)
    before = {info.key: folder.get(info.key) for info in folder.list("plan")}
    known = begun_plan(folder, images)
    assert known is not None
    assert known.is_stored
    if what == "without a marker":
        Path(folder.uri, f"_plain/{key}.json").unlink()
    elif what == "gone":
        Path(folder.uri, key).unlink()
    else:
        flip_bit(Path(folder.uri, key))
        found = read_plan(folder, 0, images.uri)
        with pytest.raises(Damaged, match=key):
            found.part(0, 10)
    planned = begun_plan(folder, images)
    assert planned is not None
    assert not planned.is_stored
    again = planned.stored(begun(folder, plan))
    assert isinstance(again.plan, PlanInParts)
    assert {info.key: folder.get(info.key) for info in folder.list("plan")} == before
    assert Path(folder.uri, f"_plain/{key}.json").exists()
    known = begun_plan(folder, images)
    assert known is not None
    assert known.is_stored


def test_damage_of_a_finished_jobs_parts_is_put_right_by_what_made_them(
    folder: Store, images: ImagesConfig
) -> None:
    plan = plan_images(images)
    stored(folder, plan)
    job = begun(folder, plan)
    job.put("00000", f"latents/{job.prefix}00000.parquet", b"shard", latent_facts(0, 10))
    job.finish(latents_result())
    assert list(verify(folder)) == []
    write_pictures(Path(images.uri).parent / "more", {"aaa": 5})
    (Path(images.uri).parent / "more/aaa").rename(Path(images.uri, "aaa"))
    second = extension_plan(folder, images, 1)
    assert second is not None
    assert second.keys == tuple(f"aaa/{number:02d}.png" for number in range(5))
    planned = stored(folder, second, 1)
    assert [info.key for info in folder.list("plan-g01/")] == [part_key(1, 0), part_key(1, 1)]
    found = read_plan(folder, 1, images.uri)
    assert as_found(folder, found) is found
    for generation, whole in ((0, plan), (1, second)):
        flip_bit(Path(folder.uri, part_key(generation, 1)))
        known = begun_plan(folder, images)
        assert known is not None
        assert known.generation == planned.generation
        data = made_again(folder, images, known)[part_key(generation, 1)]()
        assert data == whole.part(3, 6).to_bytes()
        Path(folder.uri, part_key(generation, 1)).write_bytes(data)


def test_a_driver_that_was_killed_between_parts_goes_on(folder: Store, images: ImagesConfig) -> None:
    plan = plan_images(images)
    job = begun(folder, plan)
    job.plain.put(part_key(0, 0), plan.part(0, 3).to_bytes())
    folder.put(part_key(0, 1), plan.part(3, 6).to_bytes())
    planned = Planned.new(plan, 0, ROWS).stored(job)
    assert planned.data == plan_bytes(plan, ROWS) == folder.get("plan.parquet")
    known = begun_plan(folder, images)
    assert known is not None
    assert known.is_stored


def test_parts_of_another_version_of_a_library_are_taken_as_they_are(
    folder: Store, images: ImagesConfig
) -> None:
    plan = plan_images(images)
    job = begun(folder, plan)
    other = replace(plan.part(0, 3), sizes=None).to_bytes()  # rows written in other bytes
    job.plain.put(part_key(0, 0), other)
    planned = Planned.new(plan, 0, ROWS).stored(job)
    assert isinstance(planned.plan, PlanInParts)
    assert planned.plan.listed[0].sha256 == hashlib.sha256(other).hexdigest()
    assert planned.plan.part(0, 3).keys == plan.part(0, 3).keys
    assert planned.data == head_bytes(plan, planned.plan.listed)


def test_two_drivers_store_one_plan(folder: Store, images: ImagesConfig) -> None:
    plan = plan_images(images)
    job = begun(folder, plan)
    found: list[Planned] = []
    barrier = threading.Barrier(3)

    def store(number: int) -> None:
        barrier.wait()
        mine = replace(plan, versions=np.arange(1, 11) + number)
        found.append(Planned.new(mine, 0, ROWS).stored(job))

    threads = [threading.Thread(target=store, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {planned.data for planned in found} == {folder.get("plan.parquet")}
    versions = [planned.plan.part(0, 10).versions for planned in found]
    assert all(np.array_equal(versions[0], other) for other in versions)
    part = hashlib.sha256(plan.part(0, 3).to_bytes()).hexdigest()
    assert folder.head(versions_key(part)) is not None


def test_a_head_that_says_other_than_its_parts_is_damaged(folder: Store, images: ImagesConfig) -> None:
    plan = plan_images(images)
    stored(folder, plan)
    data = folder.get("plan.parquet")
    head = read_head(data, "x")
    assert head is not None
    listed = (replace(head[1][0], rows=2), *head[1][1:])
    Path(folder.uri, "plan.parquet").write_bytes(head_bytes(plan, listed))
    Path(folder.uri, "_plain/plan.parquet.json").unlink()
    with pytest.raises(Damaged, match="is a part of another plan"):
        read_plan(folder, 0, images.uri).part(0, 2)
    with pytest.raises(UserError, match="the plan of the images in x is damaged"):
        read_head(head_bytes(plan, (replace(listed[0], rows=0),)), "x")
    with pytest.raises(UserError, match="the plan of the images in x is damaged"):
        read_head(data[:-9], "x")
