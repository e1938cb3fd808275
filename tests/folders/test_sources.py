"""What a URI of images names: a folder, an archive, several archives; on disk and on S3."""

import zipfile
from pathlib import Path

import pytest

from ray_dit.config import ImagesConfig
from ray_dit.config.images import ImageFormatName
from ray_dit.errors import NotFound, UserError
from ray_dit.folders.images import plan_images
from ray_dit.folders.reading import load_images
from ray_dit.folders.sources import open_images, read_labels
from ray_dit.formats.image_format import InputFormat
from ray_dit.formats.registry import FORMATS
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support.layouts import LAYOUTS, tar_bytes, zip_bytes
from tests.support.stores import s3_environment, store
from tests.support.tiny import SIZE, write_pictures

__all__ = ["s3_environment", "store"]


def keys_of(uri: str) -> list[str]:
    return [info.key for info in open_images(uri).list()]


def test_the_setting_names_every_format_that_is_read() -> None:
    names = {name for name, entry in FORMATS.items() if isinstance(entry, InputFormat)}
    assert {*ImageFormatName.__args__} == names


def test_the_pass_over_a_tar_is_told_before_it_where_the_tar_is_far(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tar_bytes({"cat/0.png": bytes(100_000), "cat/notes.txt": b"", "dog/1.png": b"x"})
    store.put("all.tar", data)
    plan_images(ImagesConfig(uri=store.where("all.tar")))
    lines = capsys.readouterr().err.splitlines()
    assert lines.pop() == f"{store.uri}/all.tar: left out 1: 1 .txt"
    wanted = f"{store.uri}/all.tar: finding the images passes over a tar once, as a tar has no index: "
    wanted += f"reading up to {len(data) / 1000:.1f} kB"
    assert lines == ([] if store.local_path("all.tar") else [wanted])


def test_a_uri_is_a_folder_an_archive_or_a_pattern(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "test-0.tar", "b[1].zip"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar/x.png").write_bytes(b"x")
    assert keys_of(str(tmp_path / "train-0.tar")) == ["train-0.tar"]
    assert keys_of(str(tmp_path / "train-*.tar")) == ["train-0.tar", "train-1.tar"]
    assert keys_of(str(tmp_path / "b[1].zip")) == ["b[1].zip"], "a name of its own"
    assert keys_of(str(tmp_path / "folder.tar")) == ["x.png"]
    assert len(keys_of(str(tmp_path))) == 5
    assert open_images(str(tmp_path / "train-0.tar")).uri == str(tmp_path)
    with pytest.raises(NotFound, match="nothing.tar does not exist"):
        plan_images(ImagesConfig(uri=str(tmp_path / "nothing.tar")))


def test_an_entry_that_cannot_be_unpacked_is_set_aside(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"left": 3})
    files = {f"left/{path.name}": path.read_bytes() for path in sorted((tmp_path / "images/left").iterdir())}
    data = bytearray(zip_bytes(files, zipfile.ZIP_STORED))
    data[data.index(files["left/01.png"]) + 60] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    plan = plan_images(ImagesConfig(uri=str(tmp_path / "x.zip"), size=SIZE))
    _, kept, bad = load_images(plan, range(3))
    assert (kept.tolist(), [(image.key, image.reason) for image in bad]) == (
        [0, 2],
        [("left/01.png", "damaged in its ZIP archive: its checksum is wrong")],
    )


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    assert read_labels(None) is None
    with pytest.raises(NotFound, match="l.csv does not exist: check --images.labels"):
        read_labels(str(tmp_path / "l.csv"))
    with pytest.raises(UserError, match="names no file of labels"):
        read_labels(str(tmp_path) + "/")


def test_what_was_left_out_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, {"left": 2})
    plan_images(ImagesConfig(uri=str(tmp_path)))
    assert capsys.readouterr().err == ""
    for name in ("left/.DS_Store", "left/x.heic", "left/y.heic"):
        (tmp_path / name).write_bytes(b"x")
    plan_images(ImagesConfig(uri=str(tmp_path)))
    assert capsys.readouterr().err == (f"{tmp_path}: left out 3: 2 .heic, 1 hidden or set-aside names\n")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_every_layout_are_read_from_every_store(layout: str, store: Store, tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", {"left": 3, "ä b+%#": 3})
    files = {
        path.relative_to(tmp_path / "images")
        .as_posix()
        .replace("/", f"/{path.parent.name[0]} "): path.read_bytes()
        for path in sorted((tmp_path / "images").rglob("*.png"))
    }
    for key, data in LAYOUTS[layout](files).items():
        store.put(key, data)
    folder = tmp_path / "flat"
    for key, data in files.items():
        open_store(str(folder)).put(key, data)
    local = plan_images(ImagesConfig(uri=str(folder), size=SIZE))
    plan = plan_images(ImagesConfig(uri=store.uri, size=SIZE))
    assert (plan.keys, plan.classes, plan.labels.tolist()) == (
        local.keys,
        local.classes,
        local.labels.tolist(),
    )
    assert (load_images(plan, range(6))[0] == load_images(local, range(6))[0]).all()


def test_a_pattern_and_an_archive_on_s3_and_elsewhere(store: Store) -> None:
    for number in range(2):
        store.put(f"data/s-{number}.tar", tar_bytes({f"cat/{number}.png": b"x"}))
    store.put("data/other.tar", b"no tar")
    assert plan_images(ImagesConfig(uri=f"{store.uri}/data/s-*.tar")).keys == ("cat/0.png", "cat/1.png")
    assert plan_images(ImagesConfig(uri=f"{store.uri}/data/s-1.tar")).keys == ("cat/1.png",)
