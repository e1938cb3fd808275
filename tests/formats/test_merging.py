"""Keys, classes and order in every layout: total, in one form of Unicode, refused where they are unclear."""

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from ray_dit.errors import UserError
from ray_dit.formats.image_format import Listing, Rows, input_sha256, natural_key, number_classes
from ray_dit.formats.merging import Layout, merge
from ray_dit.formats.registry import input_format
from tests.support.layouts import LAYOUTS, Files, tar_bytes, zip_bytes
from tests.support.memory import Memory


def listed(files: Files, layout: str = "folder") -> Listing:
    return input_format(layout).list_images(Memory(LAYOUTS[layout](files)))


def files(*names: str) -> dict[str, bytes]:
    return {name: name.encode() for name in names}


def test_classes_have_one_order_whatever_the_hash_seed() -> None:
    program = (
        "from ray_dit.formats.image_format import number_classes;"
        "print(number_classes(['1', '01', '001', '2', '10', 'x', '²', '٣', 'a1', 'a01'])[0])"
    )
    orders = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in range(4)
    }
    assert orders == {"('001', '01', '1', '2', '٣', '10', 'a01', 'a1', 'x', '²')\n"}


def test_numbers_of_any_length_and_script_are_sorted() -> None:
    long = "9" * 5000
    assert number_classes(["a", long, "10", "2"])[0] == ("2", "10", long, "a")
    assert natural_key("²") == ((1, "²"),)


def test_both_forms_of_a_letter_are_one_class_and_one_key() -> None:
    nfc, nfd = "é", unicodedata.normalize("NFD", "é")
    listing = listed(files(f"{nfc}/1.png", f"{nfd}/2.png", "x/1.png"))
    assert listing.classes == ("x", nfc)
    assert listing.keys == ("x/1.png", f"{nfc}/1.png", f"{nfc}/2.png")
    source = Memory(files(f"{nfd}/2.png"))
    data = input_format("folder").read_image(source, listing.keys[2], {"object": listing.places["object"][2]})
    assert data == f"{nfd}/2.png".encode()
    assert listed(files(f"{nfc}/1.png")).places == {}
    with pytest.raises(UserError, match=r"would both be 'é/1.png' \(they differ in Unicode's form alone\)"):
        listed(files(f"{nfc}/1.png", f"{nfd}/1.png"))


def test_images_outside_of_folders_are_refused_with_what_to_do() -> None:
    for layout in ("folder", "tar", "zip"):
        with pytest.raises(UserError, match=r"2 images lie in memory outside .* '0.png': .*--images.labels"):
            listed({"0.png": b"x", "1.png": b"x", "cat/1.png": b"x"}, layout)


def test_splits_are_not_taken_for_classes() -> None:
    deep = files("train/cat/0.png", "train/dog/0.png", "val/cat/0.png")
    with pytest.raises(UserError, match=r"are splits \(train, val\).*: give --images.uri memory/train$"):
        listed(deep)
    with pytest.raises(UserError, match=r"--images.uri memory/Data/CLS-LOC/train$"):
        listed({f"Data/CLS-LOC/{name}": data for name, data in deep.items()})
    with pytest.raises(UserError, match="memory/Train and --images.labels FILE, as it holds no folders"):
        listed(files("Train/0.png", "TEST/1.png"))
    with pytest.raises(UserError, match="are splits .*: pack train by itself"):
        input_format("tar").list_images(
            Memory({"a.tar": tar_bytes({f"top/{n}": d for n, d in deep.items()})})
        )
    with pytest.raises(UserError, match=r"--images.uri memory/train$"):
        listed(files("train/cat/0.png"))
    assert listed(files("train/0.png", "bus/1.png")).classes == ("bus", "train"), "vehicles"
    assert listed(files("test/0.png", "cat/1.png")).classes == ("cat", "test")


def test_objects_of_several_splits_are_not_one_dataset() -> None:
    from tests.support.layouts import parquet_bytes

    objects = {
        f"data/{split}-00000-of-00001.parquet": parquet_bytes(files(f"a/{split}.png"))
        for split in ("train", "test")
    }
    with pytest.raises(UserError, match=r"several splits \(test, train\).*'memory/data/train\*.parquet'"):
        input_format("parquet").list_images(Memory(objects))
    tars = {f"{split}-0.tar": tar_bytes(files(f"a/{split}.png")) for split in ("val", "train")}
    with pytest.raises(UserError, match=r"'memory/train\*.tar'"):
        input_format("tar").list_images(Memory(tars))


def test_the_folder_an_archive_was_made_of_is_no_class() -> None:
    inside = files("top/cat/0.png", "top/dog/1.png")
    for layout, objects in {"tar": {"x.tar": tar_bytes(inside)}, "zip": {"x.zip": zip_bytes(inside)}}.items():
        assert input_format(layout).list_images(Memory(objects)).keys == ("cat/0.png", "dog/1.png")
    one = {"x.tar": tar_bytes(files("cat/0.png", "cat/1.png"))}
    assert input_format("tar").list_images(Memory(one)).classes == ("cat",)


def test_names_that_begin_anew_in_each_shard_carry_the_shards_name() -> None:
    shards = {f"s-{n}.tar": tar_bytes({"0.png": bytes([n]), "0.cls": b"cat"}) for n in range(2)}
    listing = input_format("webdataset").list_images(Memory(shards))
    assert listing.keys == ("cat/s-0/0.png", "cat/s-1/0.png")
    twice = {"a.tar": tar_bytes(files("cat/0.png")), "b.tar": tar_bytes(files("cat/0.png"))}
    with pytest.raises(UserError, match="two images called 'cat/0.png'"):
        input_format("tar").list_images(Memory(twice))


def test_the_hash_sees_classes_that_do_not_follow_from_keys() -> None:
    def of(names: tuple[str, ...], label: int) -> str:
        zeros = np.zeros(2, np.int64)
        rows = Rows(["x/a", "x/b"], zeros, zeros, declared=names, labels=zeros + label)
        return input_sha256(merge("x", [rows], Layout()))

    assert len({of(("x",), 0), of(("x", "y"), 0), of(("y", "x"), 1)}) == 3
    folder = listed(files("cat/1.png", "dog/2.png"))
    tar = listed(files("cat/1.png", "dog/2.png"), "tar")
    assert folder.keys == tar.keys
    assert input_sha256(folder) != input_sha256(tar), "places"


def test_a_million_rows_take_a_few_hundred_megabytes() -> None:
    """Of merging; on a thousandth of it, in pymalloc's count."""
    import tracemalloc

    count = 20_000
    zeros = np.zeros(count, np.int64)
    objects = np.empty(count, dtype=object)
    objects[:] = "all.tar"
    names = [f"n{row % 1000:08d}/n{row % 1000:08d}_{row:08d}.JPEG" for row in range(count)]
    rows = Rows(names, zeros, zeros, {"object": objects, "start": zeros, "length": zeros})
    tracemalloc.start()
    listing = merge("x", [rows], Layout(in_archive=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(listing.keys) == count
    assert peak / count < 300, f"{peak / count:.0f} bytes per image"
