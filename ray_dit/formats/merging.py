"""The rows of all pieces of a source as one listing: keys, classes, order; what does not fit is refused.

An image's key is its class and its path below it, in every layout: a folder, a tar and a Parquet file of the
same images have the same keys where their names are the same. Keys and classes are in Unicode's form NFC, as
file systems disagree on others. Knows no format.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_dit.errors import UserError
from ray_dit.formats.clutter import SUFFIXES
from ray_dit.formats.label_file import LabelFile
from ray_dit.formats.rows import OBJECT, Listing, Rows

SPLITS = {
    "train", "training", "trn", "val", "valid", "validation", "dev", "eval", "test", "testing", "tst",
}  # fmt: skip
"""Names of parts of a dataset, which are no classes."""


@dataclass(frozen=True)
class Layout:
    """How a format's names are to be read."""

    in_archive: bool = False
    """A folder that holds all else says nothing: archives are made of one folder."""
    names_repeat: bool = False
    """Names are unique in one object alone, as in shards that each begin to count at 0."""


def merge(uri: str, pieces: Sequence[Rows], layout: Layout, labels: LabelFile | None = None) -> Listing:
    """The listing of all images of the source at ``uri``; ``labels`` give their classes, if any.

    UserError where there are none, where an image has no class, where two have one key, and where the folders
    taken for classes are those of splits.
    """
    left_out = sum((rows.left_out for rows in pieces), Counter[str]())
    names = [name for rows in pieces for name in rows.names]
    if not names:
        raise _no_images(uri, left_out)
    _refuse_unreadable_names(uri, names)
    originals, names = names, [_nfc(name) for name in names]
    classes, declared = _told_classes(uri, pieces)
    if layout.in_archive:
        names = _without_common_folder(names, 2 if classes is None and labels is None else 1)
    if labels is not None:
        declared, (classes, unused) = None, labels.classes_of(names)
        left_out.update({"labels without an image": unused} if unused else {})
    if classes is None:
        classes = _folders(uri, names, layout)
    keys = _keys(uri, names, originals, classes, pieces, layout)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    _refuse_twins(uri, keys, originals, order)
    numbered, numbers = declared or number_classes(classes)
    places = _columns(pieces, originals, keys)
    return Listing(
        keys=tuple(keys[row] for row in order),
        labels=numbers[order],
        classes=numbered,
        sizes=np.concatenate([rows.sizes for rows in pieces])[order],
        versions=np.concatenate([rows.versions for rows in pieces])[order],
        places={name: column[order] for name, column in places.items()},
        left_out=left_out,
    )


def number_classes(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes in natural order, and the number of each image's, from the name of each image's class."""
    classes = tuple(sorted(set(names), key=lambda name: (natural_key(name), name)))
    number = {name: label for label, name in enumerate(classes)}
    return classes, np.array([number[name] for name in names], dtype=np.int64)


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts 2 before 10 and otherwise as text; 1 and 01 are equal, which names themselves then order."""
    parts = re.split(r"(\d+)", name)
    return tuple(
        # Python reads no longer numbers
        (0, int(part)) if part.isdecimal() and len(part) < 4000 else (1, part)
        for part in parts
        if part
    )


def split_of(key: str) -> str | None:
    """The split that an object's name tells it is of, such as ``train`` of ``data/train-00000-of-00010``."""
    found = [part for part in re.split("[^a-z]+", key.lower()) if part in SPLITS]
    return found[0] if found else None


def refuse_several_splits(uri: str, keys: Sequence[str]) -> None:
    """UserError for objects of several splits, which would be read as one dataset."""
    splits = {split: key for key in reversed(keys) if (split := split_of(key)) is not None}
    if len(splits) > 1:
        split = min(splits, key=lambda name: (not name.startswith("tr"), name))
        folder, _, name = f"/{splits[split]}".rpartition("/")
        head = re.match(f"(?i).*?{split}", name)
        pattern = f"{head[0] if head else '*'}*.{name.rpartition('.')[2]}"
        raise UserError(
            f"{uri} holds several splits ({', '.join(sorted(splits))}), which would become one dataset: give "
            f"one of them, such as --images.uri '{uri}{folder}/{pattern}'"
        )


def _told_classes(
    uri: str, pieces: Sequence[Rows]
) -> tuple[list[str] | None, tuple[tuple[str, ...], NDArray[np.int64]] | None]:
    """The class of each image where the layout tells it, and names and numbers where it numbers them."""
    if len({rows.declared for rows in pieces}) > 1:
        raise UserError(f"the objects in {uri} declare different classes: read them one by one")
    columns = [rows.labels for rows in pieces if rows.labels is not None]
    if columns:
        names, numbers = tuple(map(_nfc, pieces[0].declared)), np.concatenate(columns)
        return [names[number] if number >= 0 else "" for number in numbers.tolist()], (names, numbers)
    if pieces[0].classes is None:
        return None, None
    return [_nfc(told) for rows in pieces for told in rows.classes or ()], None


def _nfc(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _without_common_folder(names: list[str], folders: int) -> list[str]:
    """Names without the folders that all of them share, as long as ``folders`` or more are above any."""
    while True:
        top = f"{names[0].partition('/')[0]}/"
        shared = all(name.startswith(top) for name in names)
        if not shared or not any(name.count("/") >= folders for name in names):
            return names
        names = [name.removeprefix(top) for name in names]


def _folders(uri: str, names: Sequence[str], layout: Layout) -> list[str]:
    """The first folder of each name, which is its class."""
    bare = [name for name in names if "/" not in name]
    if bare:
        raise UserError(
            f"{len(bare):,} images lie in {uri} outside of any folder, first {bare[0]!r}: give their classes "
            "by --images.labels FILE, or put each into a folder named as its class"
        )
    known: dict[str, str] = {}  # one string per class and not per image
    classes = [known.setdefault(told, told) for told in (name.partition("/")[0] for name in names)]
    _refuse_splits(uri, names, set(classes), layout)
    return classes


def _refuse_splits(uri: str, names: Sequence[str], classes: set[str], layout: Layout) -> None:
    """UserError where the only classes are splits, here or in the one folder that holds all else."""
    below = _without_common_folder(list(names), 2)
    tops = {name.partition("/")[0] for name in below}
    if {top.casefold() for top in tops} <= SPLITS:
        classes = tops
    elif not {name.casefold() for name in classes} <= SPLITS:
        return
    else:
        below = list(names)
    split = min(classes, key=lambda name: (not name.casefold().startswith("tr"), name))
    path = names[0].removesuffix(below[0]) + split
    deep = any(name.count("/") > 1 for name in below)
    how = "" if deep else " and --images.labels FILE, as it holds no folders of classes"
    where = f"pack {path} by itself" if layout.in_archive else f"give --images.uri {uri}/{path}"
    raise UserError(
        f"the folders in {uri} are splits ({', '.join(sorted(classes))}) and not classes: {where}{how}"
    )


def _keys(
    uri: str,
    names: Sequence[str],
    originals: Sequence[str],
    classes: Sequence[str],
    pieces: Sequence[Rows],
    layout: Layout,
) -> list[str]:
    """Class and path of each image; UserError for one without a class."""
    missing = [row for row, told in enumerate(classes) if not told]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(names):,} images in {uri} have no class, first "
            f"{originals[missing[0]]!r}: give their classes by --images.labels FILE"
        )
    keys = _below_classes(names, classes)
    if layout.names_repeat and len(set(keys)) < len(keys):
        objects = [key for rows in pieces for key in rows.places[OBJECT]]
        stems = {key: key.rpartition("/")[2].partition(".")[0] for key in set(objects)}
        keys = _below_classes(
            [f"{stems[key]}/{name}" for key, name in zip(objects, names, strict=True)], classes
        )
    if any(rows.keyed for rows in pieces):
        keyed = [rows.keyed for rows in pieces for _ in rows.names]
        keys = [name if own else key for name, key, own in zip(names, keys, keyed, strict=True)]
    return keys


def _below_classes(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    return [
        name if name.startswith(f"{told}/") else f"{told}/{name}"
        for name, told in zip(names, classes, strict=True)
    ]


def _columns(
    pieces: Sequence[Rows], originals: Sequence[str], keys: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """The columns of places, and the object of each image where its key is not the object's."""
    places = {name: np.concatenate([rows.places[name] for rows in pieces]) for name in pieces[0].places}
    if not places and list(keys) != list(originals):
        places[OBJECT] = np.array(originals, dtype=object)
    return places


def _refuse_twins(uri: str, keys: Sequence[str], originals: Sequence[str], order: Sequence[int]) -> None:
    """UserError for two images of one key; ``order`` sorts the keys."""
    for row, next_row in pairwise(order):
        key, first, second = keys[row], originals[row], originals[next_row]
        if key == keys[next_row]:
            same = first == second
            called = f"two images called {first!r}" if same else f"{first!r} and {second!r}"
            why = " (they differ in Unicode's form alone)" if not same and _nfc(first) == _nfc(second) else ""
            raise UserError(f"{uri} holds {called}, which would both be {key!r}{why}: rename one")


def _refuse_unreadable_names(uri: str, names: Sequence[str]) -> None:
    """UserError for a name that is no text, as a file system may hold it: no format could write it down."""
    for name in names:
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"the name of {name!r} in {uri} is no UTF-8: rename it") from error


def _no_images(uri: str, left_out: Counter[str]) -> UserError:
    there = ", ".join(f"{count:,} {what}" for what, count in left_out.most_common(4))
    return UserError(
        f"no images found in {uri}{f' (left out: {there})' if there else ''}: give a folder with one "
        f"sub-folder per class, or an archive of one, holding files that end in {', '.join(SUFFIXES)}"
    )
