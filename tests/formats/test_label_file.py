"""Files that give classes: the kinds that are around, how names are found, and what is refused."""

import json

import pytest

from ray_dit.errors import UserError
from ray_dit.formats.label_file import read_label_file
from ray_dit.formats.registry import input_format
from tests.support.layouts import LAYOUTS, tar_bytes
from tests.support.memory import Memory

KAGGLE = """ImageId,PredictionString
ILSVRC2012_val_00000001,n01751748 111 108 230 366
ILSVRC2012_val_00000002,n09193705 0 0 10 10 n09193705 5 5 9 9
"""
VAL = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LOC_val_solution.csv", KAGGLE),
        ("metadata.csv", f"file_name,text,label\n{VAL[0]},a snake,n01751748\n{VAL[1]},\"a, b\",n09193705\n"),
        ("two.csv", f"{VAL[0]},n01751748\n{VAL[1]},n09193705\n"),
        ("windows.csv", f"\ufeffFilename;Class\r\n{VAL[0]};n01751748\r\n{VAL[1]};n09193705\r\n"),
        ("tab.tsv", f"path\tlabel\nval/{VAL[0]}\tn01751748\nval/{VAL[1]}\tn09193705\n"),
        (
            "metadata.jsonl",
            f'{{"file_name": "{VAL[0]}", "label": "n01751748"}}\n\n'
            f'{{"file_name": "{VAL[1]}", "label": "n09193705"}}',
        ),
        ("dataset.json", json.dumps({"labels": [[VAL[0], "n01751748"], [VAL[1], "n09193705"]]})),
        ("map.json", json.dumps({VAL[0]: "n01751748", f"./{VAL[1]}": "n09193705"})),
        ("val.txt", f"{VAL[0]} n01751748\n{VAL[1]} n09193705\n"),
        ("ILSVRC2012_validation_ground_truth.txt", "n01751748\nn09193705\n"),
    ],
)  # fmt: skip
def test_every_kind_gives_the_classes(name: str, text: str) -> None:
    labels = read_label_file(text.encode(), f"x/{name}")
    tops = "val/" if name == "tab.tsv" else ""
    assert labels.classes_of([f"{tops}{VAL[1]}", f"{tops}{VAL[0]}"]) == (["n09193705", "n01751748"], 0)


def test_numbers_are_classes() -> None:
    data = json.dumps({"labels": [["00000/img0.png", 7], ["00000/img1.png", 10.0], ["00001/img0.png", 0]]})
    labels = read_label_file(data.encode(), "dataset.json")
    assert labels.classes_of(["00000/img0.png", "00001/img0.png"]) == (["7", "0"], 1)


def test_flat_images_in_every_layout_get_classes_and_the_keys_of_a_folder() -> None:
    labels = read_label_file(KAGGLE.encode(), "LOC_val_solution.csv")
    flat = {name: name.encode() for name in VAL}
    for objects in (
        flat,
        {"ILSVRC2012_img_val.tar": tar_bytes(flat)},
        {"x.tar": tar_bytes({f"val/{n}": d for n, d in flat.items()})},
    ):
        layout = "folder" if objects is flat else "tar"
        listing = input_format(layout).list_images(Memory(objects), labels)
        assert listing.keys == ("n01751748/" + VAL[0], "n09193705/" + VAL[1])
        assert listing.classes == ("n01751748", "n09193705")
    place = {"object": input_format("folder").list_images(Memory(flat), labels).places["object"][1]}
    assert input_format("folder").read_image(Memory(flat), listing.keys[1], place) == VAL[1].encode()


def test_a_file_of_labels_wins_over_folders() -> None:
    labels = read_label_file(b"file_name,label\nx/1.png,b\ny/1.png,a\n", "l.csv")
    listing = input_format("folder").list_images(Memory({"x/1.png": b"", "y/1.png": b""}), labels)
    assert listing.keys == ("a/y/1.png", "b/x/1.png")
    numbers = read_label_file(b"1.png 5\n2.png 6\n", "l.txt")
    parquet = Memory(LAYOUTS["parquet"]({"cat/1.png": b"x", "dog/2.png": b"y"}))
    assert input_format("parquet").list_images(parquet, numbers).classes == ("5", "6")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "file_name,size\nx,3\n", "its columns are file_name, size"),
        ("a.csv", "file_name,label\nx\n", "a row has too few cells"),
        ("a.csv", "file_name,label\nx,\n", "row 1 gives no class"),
        ("a.csv", "file_name,label\nx,a\nx,b\n", "'x' has the classes 'a' and 'b'"),
        ("a.csv", "", "empty|columns"),
        ("a.json", "{", "can't be read"),
        ("a.json", "[1]", "no pair of a name and a class"),
        ("a.json", '{"labels": null}', "gives no class"),
        ("a.jsonl", '{"file_name": "x", "label": true}', "row 1 gives no class"),
        ("a.txt", "one\ntwo words\n", "some of its lines hold one word alone"),
        ("a.txt", "\udcff", "can't be read"),
    ],
)
def test_what_gives_no_classes_is_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"the labels in x/{name} .*{said}.*give a CSV with the columns"):
        read_label_file(text.encode("utf-8", "surrogateescape"), f"x/{name}")


def test_images_that_are_missing_or_meant_twice_are_named() -> None:
    labels = read_label_file(b"file_name,label\n1.png,a\n2.png,b\n", "l.csv")
    with pytest.raises(
        UserError, match=r"1 of 2 images are not in l.csv, first '3.png'; it names 2, such as '1.png'"
    ):
        labels.classes_of(["1.png", "3.png"])
    with pytest.raises(UserError, match=r"'1.png' in l.csv may be 'a/1.png' or 'b/1.png': give paths"):
        labels.classes_of(["a/1.png", "b/1.png"])
    with pytest.raises(UserError, match=r"a class per line and 2 lines, but there are 3 images"):
        read_label_file(b"1\n2\n", "l.txt").classes_of(["a", "b", "c"])
