"""The rows of all pieces of a source as one listing: keys, classes, order; what does not fit is refused.

An image's key is its class and its path below it, in every layout: a folder, a tar and a Parquet file of the
same images have the same keys where their names are the same. Keys and classes are in Unicode's form NFC, as
file systems disagree on others. Knows no format.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_dit.errors import UserError
from ray_dit.formats.clutter import SUFFIXES
from ray_dit.formats.label_file import LabelFile
from ray_dit.formats.rows import OBJECT, Column, Listing, Rows, concatenated, texts_of
from ray_dit.formats.texts import BLOCK, Texts

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


@dataclass(frozen=True)
class Classes:
    """The class of each image by its number among ``names``; "" stands for none."""

    names: Sequence[str]
    numbers: NDArray[np.int32]

    @classmethod
    def of(cls, told: Texts) -> "Classes":
        """From the class of each, in any form of Unicode."""
        values, numbers = told.values()
        known: dict[str, int] = {}
        renumbered = [known.setdefault(_nfc(name), len(known)) for name in values]
        return cls(list(known), np.array(renumbered, np.int32)[numbers])

    def numbered(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Those of which there are images in natural order, and each image's number among them."""
        used: list[int] = np.flatnonzero(np.bincount(self.numbers, minlength=len(self.names))).tolist()
        numbers = np.zeros(len(self.names), np.int64)
        classes, numbers[used] = number_classes([self.names[number] for number in used])
        return classes, numbers[self.numbers]

    def are_numbered(self, classes: tuple[str, ...], labels: NDArray[np.int64]) -> bool:
        """Whether ``numbered`` gives these."""
        ours, numbers = self.numbered()
        return ours == classes and np.array_equal(numbers, labels)


def merge(uri: str, pieces: Iterable[Rows], layout: Layout, labels: LabelFile | None = None) -> Listing:
    """The listing of all images of the source at ``uri``; ``labels`` give their classes, if any.

    UserError where there are none, where an image has no class, where two have one key, and where the folders
    taken for classes are those of splits. Memory holds little more than the listing, twice for its keys.
    """
    found = _Columns.of(uri, pieces)
    originals = found.names()
    if not len(originals):
        raise _no_images(uri, found.left_out)
    names = _in_nfc(originals)
    classes, declared = found.told_classes()
    if layout.in_archive:
        names = names.without_first(_common_folder(names, 2 if classes is None and labels is None else 1))
    if labels is not None:
        declared, (told, unused) = None, labels.classes_of(names)
        classes = Classes.of(texts_of(told, labels.where))
        found.left_out.update({"labels without an image": unused} if unused else {})
    if classes is None:
        classes = _folders(uri, names, layout)
    _refuse_missing_classes(uri, classes, originals)
    keys = _keys(found, names, classes, layout)
    del names
    order = keys.order()
    places = found.places()
    if not places and keys != originals:
        places[OBJECT] = originals
    _refuse_twins(uri, keys, originals, order)
    del originals  # before as much is made of the keys in order
    keys = keys[order]
    numbered, numbers = declared or classes.numbered()
    return Listing(
        keys=keys,
        labels=numbers[order],
        classes=numbered,
        sizes=found.sizes()[order],
        versions=found.versions()[order],
        places={name: places.pop(name)[order] for name in [*places]},
        left_out=found.left_out,
    )


@dataclass
class _Columns:
    """The columns of all pieces, one after another. Each is handed out once, so that none is kept twice."""

    uri: str
    own: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    at: dict[str, list[Column]] = field(default_factory=dict[str, list[Column]])
    """Of places."""
    declared: set[tuple[str, ...]] = field(default_factory=set[tuple[str, ...]])
    keyed: list[tuple[int, bool]] = field(default_factory=list[tuple[int, bool]])
    """Of each piece: how many images, and whether their names are keys."""
    left_out: Counter[str] = field(default_factory=Counter[str])

    @classmethod
    def of(cls, uri: str, pieces: Iterable[Rows]) -> "_Columns":
        found = cls(uri)
        for piece in pieces:
            found._add(piece.packed(uri))
        return found

    def _add(self, rows: Rows) -> None:
        self.left_out.update(rows.left_out)
        self.declared.add(rows.declared)
        self.keyed.append((len(rows.names), rows.keyed))
        told = {"classes": rows.classes, "labels": rows.labels}
        for name, column in {
            "names": rows.names,
            "sizes": rows.sizes,
            "versions": rows.versions,
            **told,
        }.items():
            if column is not None:
                self.own.setdefault(name, []).append(column)
        for name, column in rows.places.items():
            self.at.setdefault(name, []).append(column)

    def names(self) -> Texts:
        return Texts.joined(self.own.pop("names", []))

    def sizes(self) -> NDArray[np.int64]:
        return np.concatenate(self.own.pop("sizes"))

    def versions(self) -> NDArray[np.int64]:
        return np.concatenate(self.own.pop("versions"))

    def objects(self) -> Texts:
        """The object of each image, which are left here."""
        return Texts.joined([part for part in self.at[OBJECT] if isinstance(part, Texts)])

    def places(self) -> dict[str, Column]:
        return {name: concatenated(self.at.pop(name)) for name in [*self.at]}

    def told_classes(self) -> tuple[Classes | None, tuple[tuple[str, ...], NDArray[np.int64]] | None]:
        """The class of each image where the layout tells it, and names and numbers where it numbers them."""
        if len(self.declared) > 1:
            raise UserError(f"the objects in {self.uri} declare different classes: read them one by one")
        if "labels" in self.own:
            names = tuple(map(_nfc, next(iter(self.declared))))
            numbers = np.concatenate(self.own.pop("labels"))
            told = Classes([*names, ""], np.where(numbers < 0, len(names), numbers).astype(np.int32))
            return told, (names, numbers)
        if "classes" not in self.own:
            return None, None
        return Classes.of(Texts.joined(self.own.pop("classes"))), None


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


def _nfc(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _in_nfc(names: Texts) -> Texts:
    """In Python's own version of Unicode, whatever arrow's is."""
    return names if names.are_ascii() else names.mapped(lambda block: map(_nfc, block))


def _common_folder(names: Texts, folders: int) -> int:
    """How long the folders that all names share are, as long as ``folders`` or more are above any."""
    first, shared, most = names[0], 0, names.most_of("/")
    while True:
        more = shared + len(first[shared:].partition("/")[0]) + 1
        if most < folders or more > len(first) or not names.all_begin_with(first[:more]):
            return shared
        shared, most = more, most - 1


def first_folders(names: Texts) -> Classes:
    """The first folder of each name, and all of it where there is none."""
    known: dict[str, int] = {}
    numbers = np.empty(len(names), np.int32)
    for number, block in enumerate(names.blocks()):
        folders = (name.partition("/")[0] for name in block)
        found = [known.setdefault(folder, len(known)) for folder in folders]
        numbers[number * BLOCK : number * BLOCK + len(block)] = found
    return Classes(list(known), numbers)


def _folders(uri: str, names: Texts, layout: Layout) -> Classes:
    """The first folder of each name, which is its class."""
    bare = names.rows_without("/")
    if len(bare):
        raise UserError(
            f"{len(bare):,} images lie in {uri} outside of any folder, first {names[int(bare[0])]!r}: give "
            "their classes by --images.labels FILE, or put each into a folder named as its class"
        )
    classes = first_folders(names)
    _refuse_splits(uri, names, {*classes.names}, layout)
    return classes


def _refuse_splits(uri: str, names: Texts, classes: set[str], layout: Layout) -> None:
    """UserError where the only classes are splits, here or in the one folder that holds all else."""
    shared = _common_folder(names, 2)
    tops = {*first_folders(names.without_first(shared)).names} if shared else classes
    if {top.casefold() for top in tops} <= SPLITS:
        classes = tops
    elif not {name.casefold() for name in classes} <= SPLITS:
        return
    else:
        shared = 0
    split = min(classes, key=lambda name: (not name.casefold().startswith("tr"), name))
    path = names[0][:shared] + split
    deep = names.without_first(shared).most_of("/") > 1
    how = "" if deep else " and --images.labels FILE, as it holds no folders of classes"
    where = f"pack {path} by itself" if layout.in_archive else f"give --images.uri {uri}/{path}"
    raise UserError(
        f"the folders in {uri} are splits ({', '.join(sorted(classes))}) and not classes: {where}{how}"
    )


def _refuse_missing_classes(uri: str, classes: Classes, originals: Texts) -> None:
    """UserError for an image without a class."""
    none = [number for number, name in enumerate(classes.names) if not name]
    missing: NDArray[np.int64] = np.flatnonzero(np.isin(classes.numbers, none))
    if len(missing):
        raise UserError(
            f"{len(missing):,} of {len(originals):,} images in {uri} have no class, first "
            f"{originals[int(missing[0])]!r}: give their classes by --images.labels FILE"
        )


def _keys(found: _Columns, names: Texts, classes: Classes, layout: Layout) -> Texts:
    """Class and path of each image."""
    keys = _below_classes(names, classes)
    if layout.names_repeat and keys.first_twin(keys.order()) is not None:
        objects, numbers = found.objects().values()
        stems = [key.rpartition("/")[2].partition(".")[0] for key in objects]
        keys = _below_classes(names.mapped(_below(stems), numbers), classes)
    if any(is_keyed for _, is_keyed in found.keyed):
        ends = list(accumulate(count for count, _ in found.keyed))
        spans = [slice(end - count, end) for end, (count, _) in zip(ends, found.keyed, strict=True)]
        own = [is_keyed for _, is_keyed in found.keyed]
        keys = Texts.joined([(names if mine else keys)[span] for span, mine in zip(spans, own, strict=True)])
    return keys


def _below(folders: Sequence[str]) -> Callable[[list[str], list[int]], list[str]]:
    """Puts names below folders of these numbers."""

    def change(block: list[str], numbers: list[int]) -> list[str]:
        return [f"{folders[number]}/{name}" for name, number in zip(block, numbers, strict=True)]

    return change


def _below_classes(names: Texts, classes: Classes) -> Texts:
    """Names below their classes, unless they are there."""
    heads = [f"{name}/" for name in classes.names]

    def is_below(block: list[str], numbers: list[int]) -> bool:
        return all(name.startswith(heads[number]) for name, number in zip(block, numbers, strict=True))

    def change(block: list[str], numbers: list[int]) -> list[str]:
        return [
            name if name.startswith(heads[number]) else heads[number] + name
            for name, number in zip(block, numbers, strict=True)
        ]

    if all(is_below(block, part) for block, part in names.blocks_with(classes.numbers)):
        return names
    return names.mapped(change, classes.numbers)


def _refuse_twins(uri: str, keys: Texts, originals: Texts, order: NDArray[np.int64]) -> None:
    """UserError for two images of one key; ``order`` sorts them."""
    place = keys.first_twin(order)
    if place is not None:
        (first, second), key = originals[order[place : place + 2]], keys[int(order[place])]
        same = first == second
        called = f"two images called {first!r}" if same else f"{first!r} and {second!r}"
        why = " (they differ in Unicode's form alone)" if not same and _nfc(first) == _nfc(second) else ""
        raise UserError(f"{uri} holds {called}, which would both be {key!r}{why}: rename one")


def _no_images(uri: str, left_out: Counter[str]) -> UserError:
    there = ", ".join(f"{count:,} {what}" for what, count in left_out.most_common(4))
    return UserError(
        f"no images found in {uri}{f' (left out: {there})' if there else ''}: give a folder with one "
        f"sub-folder per class, or an archive of one, holding files that end in {', '.join(SUFFIXES)}"
    )
