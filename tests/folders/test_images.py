"""The image folder as stages see it: order, labels, split, and pictures that cannot be read."""

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_dit.config import ImagesConfig
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.quarantine import check_bad
from ray_dit.folders.reading import load_images
from ray_dit.formats.deterministic import parquet_bytes
from ray_dit.formats.registry import FORMATS
from ray_dit.formats.rows import Listing, Place, Source
from ray_dit.formats.texts import Texts
from ray_dit.results import BadImage
from tests.support.input_formats import ReadAlone


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(sink, format="PNG")
    return sink.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("10", "2", "cat"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(png(number * 10))
    (tmp_path / "2" / "notes.txt").write_text("not a picture")
    return tmp_path


def plan_of(folder: Path, **fields: float) -> ImagePlan:
    return plan_images(ImagesConfig(uri=str(folder), size=8, **fields))  # type: ignore[arg-type]


def test_classes_are_in_natural_order_and_rows_in_key_order(folder: Path) -> None:
    plan = plan_of(folder)
    assert plan.classes == ("2", "10", "cat")
    assert plan.keys == tuple(sorted(plan.keys))
    assert len(plan.keys) == 9
    assert [plan.classes[label] for label in plan.labels] == [key.split("/")[0] for key in plan.keys]


def test_the_split_is_a_function_of_the_key(folder: Path) -> None:
    before = dict(zip(plan_of(folder, heldout=0.5).keys, plan_of(folder, heldout=0.5).heldout, strict=True))
    (folder / "cat" / "new.png").write_bytes(png(1))
    after = plan_of(folder, heldout=0.5)
    held = dict(zip(after.keys, after.heldout, strict=True))
    assert all(held[key] == before[key] for key in before)
    assert 0 < sum(before.values()) < 9
    assert set(after.rows(heldout=True)) | set(after.rows(heldout=False)) == set(range(10))


def test_the_hash_sees_another_picture(folder: Path) -> None:
    before = plan_of(folder).sha256
    assert plan_of(folder).sha256 == before
    (folder / "2" / "0.png").write_bytes(png(3, (8, 9)))
    assert plan_of(folder).sha256 != before


def test_the_hash_of_a_folder_is_that_of_earlier_versions(folder: Path) -> None:
    found = sorted(
        (path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*.png")
    )
    assert plan_of(folder).sha256 == hashlib.sha256(json.dumps(found).encode()).hexdigest()


def test_a_plan_survives_its_bytes(folder: Path) -> None:
    plan = plan_of(folder, heldout=0.5)
    again = ImagePlan.from_bytes(plan.to_bytes(), plan.uri)
    assert (again.keys, again.classes, again.sha256, again.size) == (
        plan.keys,
        plan.classes,
        plan.sha256,
        plan.size,
    )
    assert (again.labels == plan.labels).all()
    assert (again.heldout == plan.heldout).all()


def test_a_plan_keeps_where_images_lie_in_shared_objects(folder: Path) -> None:
    places = {"object": np.array(["a.tar", "b.tar", "b.tar"]), "start": np.array([512, 512, 2048])}
    plan = replace(
        plan_of(folder),
        keys=Texts.of(("x", "y", "z")),
        labels=np.zeros(3, np.int64),
        heldout=np.zeros(3, bool),
    )
    sizes, versions = np.array([1024, 4096, 4096]), np.array([1, -2, -2])
    plan = replace(plan, format="another", places=places, sizes=sizes, versions=versions)
    again = ImagePlan.from_bytes(plan.to_bytes(), plan.uri)
    assert again.format == "another"
    assert [again.place(row) for row in range(3)] == [plan.place(row) for row in range(3)]
    assert again.place(2) == {"object": "b.tar", "start": 2048}
    assert [again.object_key(row) for row in range(3)] == ["a.tar", "b.tar", "b.tar"]
    assert again.sizes is not None
    assert again.sizes.tolist() == sizes.tolist()
    assert again.stored_bytes() == 1024 + 4096
    assert again.versions is None
    assert plan.to_bytes() == replace(plan, versions=versions + 1).to_bytes(), "the same images elsewhere"
    noted = plan.versions_bytes()
    assert noted is not None
    known = again.with_versions(noted).versions
    assert known is not None
    assert known.tolist() == versions.tolist()
    assert plan.by_size().versions_bytes() is None
    with pytest.raises(UserError, match="can't be read in the format 'another'"):
        load_images(again, [0])


def test_images_are_decoded_as_the_settings_say_after_a_plan_was_stored(folder: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "2" / "1.png")
    deep = Image.fromarray(np.full((8, 8), 2048, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 3
    deep.putpixel((0, 0), 4095)
    deep.save(folder / "2" / "2.png", exif=exif)
    asked = ImagesConfig(
        uri=str(folder), size=8, background="#FF0000", exif_orientation=True, white_level=4095
    )
    plan = ImagePlan.from_bytes(plan_images(asked).to_bytes(), str(folder))
    rows = [plan.keys.index(key) for key in ("2/1.png", "2/2.png")]
    clear, grey = load_images(plan, rows)[0]
    assert clear[0, 0].tolist() == [255, 0, 0]
    assert (grey[7, 7, 0], grey[0, 0, 0]) == (255, 128)
    with pytest.raises(ValueError, match="'pink' is no colour: give white, black or six"):
        ImagesConfig(uri="x", background="pink")


def test_a_plan_made_before_formats_had_names_is_of_a_folder(folder: Path) -> None:
    plan = plan_of(folder)
    assert b"format" not in plan.to_bytes()
    assert ImagePlan.from_bytes(plan.to_bytes(), plan.uri).format == "folder"


def test_bad_pictures_are_set_aside_and_named(folder: Path) -> None:
    (folder / "10" / "1.png").write_bytes(png(5)[:50])
    (folder / "cat" / "2.png").write_bytes(b"no picture at all")
    plan = plan_of(folder)
    images, kept, bad = load_images(plan, range(9))
    assert images.shape == (7, 8, 8, 3)
    assert images.dtype == np.uint8
    assert [entry.key for entry in bad] == ["10/1.png", "cat/2.png"]
    assert {plan.keys[row] for row in kept} == set(plan.keys) - {entry.key for entry in bad}


def test_too_many_bad_ones_fail_with_an_example() -> None:
    check_bad(1, 100, 0.01, "here", [])
    with pytest.raises(UserError, match="2 of 100 images in here"):
        check_bad(2, 100, 0.01, "here", [])


@pytest.mark.timeout(20)
def test_what_is_no_file_is_no_picture(folder: Path) -> None:
    os.mkfifo(folder / "cat" / "waits.png")
    (folder / "cat" / "endless.png").symlink_to("/dev/zero")
    plan = plan_of(folder)
    assert len(plan.keys) == 9
    assert len(load_images(plan, range(9))[0]) == 9


def test_wrong_places_are_told_apart(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        plan_of(tmp_path / "gone")
    with pytest.raises(UserError, match="is a file"):
        plan_of(folder / "2" / "notes.txt")
    (folder / "dog").mkdir()
    with pytest.raises(UserError, match="'dog' .* holds no images"):
        plan_of(folder)
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="no images found"):
        plan_of(tmp_path / "void")


def test_images_that_are_gone_or_changed_are_set_aside_as_such(folder: Path) -> None:
    plan = plan_of(folder)
    (folder / "10/0.png").unlink()
    (folder / "2/1.png").write_bytes(png(10, (90, 90)))
    (folder / "2/2.png").unlink()
    (folder / "2/2.png").mkdir()
    images, kept, bad = load_images(plan, range(9))
    assert [(entry.key, entry.code) for entry in bad] == [
        ("10/0.png", "gone"),
        ("2/1.png", "changed"),
        ("2/2.png", "gone"),
    ]
    assert all(entry.is_fleeting for entry in bad)
    assert not BadImage("x", "no image").is_fleeting
    assert (len(images), kept.tolist()) == (6, [1, 2, 3, 6, 7, 8])
    with pytest.raises(NotFound, match="10/0.png is gone since its images were planned: bring it back"):
        load_images(plan, range(9), all_there=True)
    with pytest.raises(Conflict, match="2/1.png is not what it was when its images were planned: bring that"):
        load_images(plan, [4], all_there=True)


def test_a_plan_of_before_knows_only_what_is_gone(folder: Path) -> None:
    plan = replace(plan_of(folder), sizes=None, versions=None)
    assert {*pq.read_table(io.BytesIO(plan.to_bytes())).column_names} == {"key", "label", "heldout"}
    again = ImagePlan.from_bytes(plan.to_bytes(), plan.uri)
    assert again.sizes is None
    (folder / "10/0.png").unlink()
    (folder / "2/1.png").write_bytes(png(10, (90, 90)))
    assert [entry.code for entry in load_images(again, range(9))[2]] == ["gone"]


class Strips(ReadAlone):
    """Several images in one object, each of the same length."""

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        return source.get_range(place["object"], place["start"], place["length"])


@pytest.fixture
def strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImagePlan:
    """Two objects of two images each."""
    monkeypatch.setitem(FORMATS, "strips", Strips())
    data = png(7)
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(2 * data)
    places = {"object": np.array(["a.bin", "a.bin", "b.bin", "b.bin"]), "start": np.array([0, len(data)] * 2)}
    places["length"] = np.full(4, len(data))
    keys = Texts.of(f"{name}/{number}" for name in ("a", "b") for number in range(2))
    sizes = np.full(4, 2 * len(data))
    listing = Listing(keys, np.zeros(4, np.int64), ("all",), sizes, np.zeros(4, np.int64), places)
    plan = ImagePlan.of(listing, ImagesConfig(uri=str(tmp_path), size=8))
    return replace(plan, format="strips")


def test_an_object_of_several_images_stops_its_shards_where_it_is_not_as_planned(
    strips: ImagePlan,
) -> None:
    again = ImagePlan.from_bytes(strips.to_bytes(), strips.uri)
    assert len(load_images(again, range(4))[0]) == 4
    Path(strips.uri, "a.bin").write_bytes(png(7))
    with pytest.raises(Conflict, match="a.bin is not what it was when its images were planned"):
        load_images(again, [0])
    Path(strips.uri, "a.bin").unlink()
    with pytest.raises(NotFound, match="a.bin is gone since its images were planned"):
        load_images(again, [0, 2])
    assert len(load_images(again, [2, 3])[0]) == 2, "the other object's are read"


def test_classes_in_another_order_are_the_same_classes(folder: Path) -> None:
    plan = plan_of(folder)
    other = plan.in_order_of(("cat", "2", "10"))
    assert [other.classes[label] for label in other.labels] == [plan.classes[label] for label in plan.labels]


def test_a_plan_with_sizes_of_another_type_is_damaged(folder: Path) -> None:
    table = pq.read_table(io.BytesIO(plan_of(folder).to_bytes()))
    changed = table.drop_columns(["size"]).append_column("size", table["size"].cast("int32"))
    facts = json.loads(table.schema.metadata[b"facts"])
    with pytest.raises(UserError, match="the plan of the images in .*sizes are of another type"):
        ImagePlan.from_bytes(parquet_bytes(changed, facts), "here")
