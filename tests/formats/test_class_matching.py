"""Folders and classes find each other, whatever their order and their names."""

import random

import pytest

from ray_dit.formats.class_matching import match_classes, unmatched
from ray_dit.formats.labels import Labels

IMAGENET = Labels.imagenet()


def shuffled(names: list[str]) -> list[str]:
    return random.Random(0).sample(names, len(names))


def assert_matched(folders: list[str], labels: Labels, expected: list[str]) -> None:
    """``expected``: the folder of each class."""
    order = match_classes(folders, labels)
    assert order is not None
    assert [folders[number] for number in order] == expected


@pytest.mark.parametrize("order", [sorted, shuffled])
def test_imagenet_by_its_ids(order: object) -> None:
    ids = list(IMAGENET.wordnet_ids)
    folders = order(ids)  # type: ignore[operator]
    assert_matched(folders, IMAGENET, ids)
    without_ids = Labels(IMAGENET.names)  # as datasets of before tell them
    assert_matched(folders, without_ids, ids)


def test_imagenet_by_names_that_tell_the_classes_apart() -> None:
    names = list(IMAGENET.unique_names)
    assert len({*names}) == 1000
    assert [name for name in names if "(" in name] == ["crane (n02012849)", "crane (n03126707)"]
    assert_matched(shuffled(names), IMAGENET, names)


def test_torchvisions_order_and_the_natural_one() -> None:
    folders = [f"n{number}" for number in range(1, 1001)]  # natural, as images are listed
    torchvision = sorted(folders)
    assert torchvision != folders
    assert_matched(folders, Labels(tuple(torchvision)), torchvision)
    assert_matched(folders, Labels(tuple(folders)), folders)


def test_classes_without_names_are_torchvisions() -> None:
    folders = ["a2", "a10", "b"]
    assert_matched(folders, Labels.numbered(3), ["a10", "a2", "b"])


def test_folders_called_by_numbers() -> None:
    assert_matched(
        ["0", "1", "10", *map(str, range(2, 10))], Labels(tuple("abcdefghijk")), [*map(str, range(11))]
    )
    assert_matched(["000", "001"], Labels(("cat", "dog")), ["000", "001"])


def test_names_by_synonyms_and_in_any_case() -> None:
    labels = Labels(("tench, Tinca tinca", "goldfish, Carassius auratus"))
    assert_matched(["Goldfish", "tench"], labels, ["tench", "Goldfish"])
    assert_matched(
        ["carassius auratus", "tench, Tinca tinca"], labels, ["tench, Tinca tinca", "carassius auratus"]
    )


def test_a_name_before_a_number() -> None:
    assert_matched(["0", "1", "2"], Labels(("2", "0", "1")), ["2", "0", "1"])


@pytest.mark.parametrize(
    ("folders", "names", "odd"),
    [
        (["cat"], ("cat", "dog"), "dog"),
        (["cat", "cow"], ("cat", "dog"), "cow"),
        (["cat", "cow", "dog"], ("cat", "dog"), "cow"),
    ],
)
def test_others_are_not_matched(folders: list[str], names: tuple[str, ...], odd: str) -> None:
    assert match_classes(folders, Labels(names)) is None
    assert unmatched(folders, Labels(names)) == odd
