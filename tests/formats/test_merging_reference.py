"""Merging in arrow's memory against the same in plain Python, on random rows of pieces."""

import random
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ray_dit.errors import UserError
from ray_dit.formats.image_format import input_sha256, number_classes
from ray_dit.formats.label_file import LabelFile
from ray_dit.formats.merging import Layout, merge
from ray_dit.formats.rows import OBJECT, Column, Rows
from ray_dit.formats.texts import BLOCK, Texts

FOLDERS = ["cat", "dog", "10", "2", "é", "e\u0301", "a.b", "ä#+ %", "\U0001f600", "\uffff", "train", "top"]
FILES = [
    "1.png",
    "01.png",
    "10.png",
    "é.png",
    "e\u0301.png",
    "\U0001f600.jpg",
    "\ue000.jpg",
    "Z.png",
    "a b.png",
]


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def without_common_folder(names: list[str], folders: int) -> list[str]:
    while True:
        top = f"{names[0].partition('/')[0]}/"
        if not all(name.startswith(top) for name in names) or max(n.count("/") for n in names) < folders:
            return names
        names = [name.removeprefix(top) for name in names]


def below(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    pairs = zip(names, classes, strict=True)
    return [name if name.startswith(f"{told}/") else f"{told}/{name}" for name, told in pairs]


def expected(pieces: Sequence[Rows], layout: Layout, labels: LabelFile | None) -> dict[str, Any] | None:
    """The listing by lists of Python's; None where the source is refused."""
    originals = [name for rows in pieces for name in rows.names]
    names = [nfc(name) for name in originals]
    classes = None if pieces[0].classes is None else [nfc(c) for rows in pieces for c in rows.classes or ()]
    if layout.in_archive:
        names = without_common_folder(names, 2 if classes is None and labels is None else 1)
    if labels is not None:
        classes = [labels.by_name.get(name, "") for name in names]
    if classes is None:
        classes = [name.partition("/")[0] if "/" in name else "" for name in names]
        if {*classes} <= {"train"} or {n.partition("/")[0] for n in without_common_folder(names, 2)} <= {
            "train"
        }:
            return None
    if not all(classes):
        return None
    keys = below(names, classes)
    if layout.names_repeat and len({*keys}) < len(keys):
        objects = [str(key) for rows in pieces for key in rows.places[OBJECT]]
        keys = below(
            [f"{at.partition('.')[0]}/{name}" for at, name in zip(objects, names, strict=True)], classes
        )
    if len({*keys}) < len(keys):
        return None
    order = sorted(range(len(keys)), key=keys.__getitem__)
    places = {name: [v for rows in pieces for v in rows.places[name].tolist()] for name in pieces[0].places}
    if not places and keys != originals:
        places[OBJECT] = originals
    numbered, numbers = number_classes(classes)
    return {
        "keys": [keys[row] for row in order],
        "classes": numbered,
        "labels": numbers[order].tolist(),
        "sizes": np.concatenate([rows.sizes for rows in pieces])[order].tolist(),
        "versions": np.concatenate([rows.versions for rows in pieces])[order].tolist(),
        "places": {name: [column[row] for row in order] for name, column in places.items()},
    }


def random_piece(chance: random.Random, number: int, *, told: bool, packed: bool, deep: int) -> Rows:
    count = chance.randint(0 if number else 1, 12)
    names = ["/".join([*chance.choices(FOLDERS, k=deep), chance.choice(FILES)]) for _ in range(count)]
    numbers = np.array([chance.randint(-5, 1 << 40) for _ in range(count)], np.int64)
    places: dict[str, Column] = {}
    if packed:
        places = {OBJECT: Texts.same(f"s-{number}.tar", count), "start": numbers + 1}
    classes = chance.choices(FOLDERS, k=count) if told else None
    return Rows(names, numbers, numbers - 7, places, classes=classes)


def found(pieces: Sequence[Rows], layout: Layout, labels: LabelFile | None) -> dict[str, Any] | None:
    try:
        listing = merge("x", pieces, layout, labels)
    except UserError:
        return None
    assert len(input_sha256(listing)) == 64
    return {
        "keys": list(listing.keys),
        "classes": listing.classes,
        "labels": listing.labels.tolist(),
        "sizes": listing.sizes.tolist(),
        "versions": listing.versions.tolist(),
        "places": {name: column.tolist() for name, column in listing.places.items()},
    }


def test_random_rows_are_merged_as_lists_would_be() -> None:
    chance = random.Random(0)
    merged = 0
    for _ in range(1500):
        deep, told, packed = chance.randint(0, 3), chance.random() < 0.4, chance.random() < 0.5
        layout = Layout(in_archive=packed, names_repeat=packed and chance.random() < 0.5)
        pieces = [
            random_piece(chance, number, told=told, packed=packed, deep=deep)
            for number in range(chance.randint(1, 3))
        ]
        names = {nfc(name) for rows in pieces for name in rows.names}
        given = None
        if chance.random() < 0.2 and not packed:
            given = LabelFile("labels", {name: nfc(chance.choice(FOLDERS)) for name in names})
        wanted = expected(pieces, layout, given)
        assert found(pieces, layout, given) == wanted
        merged += wanted is not None
    assert 500 < merged < 1450


def test_rows_beyond_a_block_are_merged_as_lists_would_be() -> None:
    count = BLOCK + 100
    names = [f"c{row % 7}/ä{(row * 7919) % count}.png" for row in range(count)]
    zeros = np.arange(count)
    pieces = [Rows(names[:3], zeros[:3], zeros[:3]), Rows(names[3:], zeros[3:], zeros[3:])]
    assert found(pieces, Layout(), None) == expected(pieces, Layout(), None)


@pytest.mark.parametrize("row", [0, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 8])
def test_two_of_one_key_are_found_wherever_they_are(row: int) -> None:
    names = [f"a/{at:09d}" for at in range(BLOCK + 10)]
    names[row + 1] = names[row]
    zeros = np.zeros(len(names), np.int64)
    with pytest.raises(UserError, match=f"holds two images called 'a/{row:09d}', which would both be"):
        merge("x", [Rows(names, zeros, zeros)], Layout())


@pytest.mark.parametrize("count", [3, BLOCK, BLOCK + 1])
def test_the_hash_of_rows_is_that_of_one_dump_of_all(count: int) -> None:
    import hashlib
    import json

    names = [f'c/"{row:07d}\u00e9\n.png' for row in range(count)]
    numbers = np.arange(count)
    rows = Rows(names, numbers, numbers, {OBJECT: Texts.same("ü.tar", count), "start": numbers * 512})
    listing = merge("x", [rows], Layout())
    every = [[name, row, "ü.tar", row * 512] for row, name in enumerate(names)]
    assert input_sha256(listing) == hashlib.sha256(json.dumps(every).encode()).hexdigest()
    declared = Rows(names, numbers, numbers, declared=("a", "c"), labels=numbers * 0 + 1)
    told = merge("x", [declared], Layout())
    text = json.dumps([[name, row] for row, name in enumerate(names)]) + json.dumps([["a", "c"], [1] * count])
    assert told.keys == listing.keys
    assert input_sha256(told) == hashlib.sha256(text.encode()).hexdigest()
