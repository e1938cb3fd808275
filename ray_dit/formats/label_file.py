"""Files that give the class of each image by its name, so that images need not lie in folders of classes.

Knows bytes and names. Four kinds of files are read:

* CSV or TSV with a header: the columns of file names and classes are found by their names, as in Hugging
  Face's ``metadata.csv`` and Kaggle's ``LOC_val_solution.csv``; without one, it has these two columns.
* JSONL: an object per line, with the same names.
* JSON: a list of such objects or of pairs, alone or under ``labels`` as in EDM2's ``dataset.json``; or a
  mapping of names to classes.
* Text: a name and a class per line; or a class per line, in the order of the images' names, as in ILSVRC's
  development kit.
"""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ray_dit.errors import UserError, first_message
from ray_dit.formats.clutter import SUFFIXES, suffix_of
from ray_dit.formats.json_text import parse_json

FILES = (
    "file_name", "filename", "file", "image", "image_path", "path", "file_path", "filepath", "img",
    "image_name", "image_file", "imageid", "image_id", "key", "name", "id",
)  # fmt: skip
CLASSES = (
    "label_name", "class_name", "label", "class", "cls", "category", "wnid", "synset", "target",
    "predictionstring", "label_id", "class_id", "labels", "y",
)  # fmt: skip
"""Names of columns in order of preference, in lower case."""
BOXES = "predictionstring"
"""Kaggle's column of classes and their boxes: the first word is the class."""


@dataclass(frozen=True)
class LabelFile:
    """The classes that a file gives: by name, or in the order of the images' names."""

    where: str
    by_name: Mapping[str, str]
    in_order: Sequence[str] = ()

    def classes_of(self, names: Sequence[str]) -> tuple[list[str], int]:
        """The class of each image, and how many classes the file gives beside.

        A name is looked up whole, then without its suffix, then without its folders, then without both.
        UserError for images that the file does not name, and where it names one that may be any of several.
        """
        if self.in_order:
            return self._ordered(names), 0
        found = [self._row_of(name) for name in names]
        missing = [name for name, row in zip(names, found, strict=True) if row is None]
        if missing:
            raise UserError(
                f"{len(missing):,} of {len(names):,} images are not in {self.where}, first {missing[0]!r}; "
                f"it names {len(self.by_name):,}, such as {next(iter(self.by_name), '')!r}: add the missing, "
                "or take the images away"
            )
        used = cast("list[str]", found)
        self._refuse_vague_rows(names, used)
        return [self.by_name[row] for row in used], len(self.by_name.keys() - set(used))

    def _row_of(self, name: str) -> str | None:
        base = name.rpartition("/")[2]
        tries = (name, name.removesuffix(suffix_of_text(name)), base, base.removesuffix(suffix_of_text(base)))
        return next((row for row in tries if row in self.by_name), None)

    def _refuse_vague_rows(self, names: Sequence[str], rows: Sequence[str]) -> None:
        often = [row for row, count in Counter(rows).items() if count > 1]
        if often:
            first, second = [name for name, row in zip(names, rows, strict=True) if row == often[0]][:2]
            raise UserError(
                f"{often[0]!r} in {self.where} may be {first!r} or {second!r}: give paths of images there"
            )

    def _ordered(self, names: Sequence[str]) -> list[str]:
        if len(self.in_order) != len(names):
            raise UserError(
                f"{self.where} has a class per line and {len(self.in_order):,} lines, but there are "
                f"{len(names):,} images: give names and classes, or the lines of these images"
            )
        order = sorted(range(len(names)), key=names.__getitem__)
        classes = [""] * len(names)
        for row, told in zip(order, self.in_order, strict=True):
            classes[row] = told
        return classes


def read_label_file(data: bytes, where: str) -> LabelFile:
    """The classes in the bytes of the file at ``where``, read as its suffix says; UserError for others."""
    try:
        text = data.decode("utf-8-sig")
        kind = suffix_of(where)
        if kind == ".json":
            return LabelFile(where, _by_name(_json_pairs(parse_json(text))))
        if kind in (".jsonl", ".ndjson"):
            lines = (parse_json(line) for line in text.splitlines() if line.strip())
            return LabelFile(where, _by_name(_json_pairs(list(lines))))
        if kind in (".csv", ".tsv"):
            return LabelFile(where, _by_name(_csv_pairs(text, "\t" if kind == ".tsv" else None)))
        return _text(where, text)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"the labels in {where} can't be read ({first_message(error)}): give a CSV with the columns "
            "file_name and label, JSONL with these names, or text with a name and a class per line"
        ) from error


def class_name(value: Any) -> str | None:
    """A class as it is written in JSON or a cell: text, or a whole number; None for anything else."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return str(value)
    return None


def suffix_of_text(name: str) -> str:
    """An image's suffix as it is written in its name; empty where it has none of an image."""
    suffix = suffix_of(name)
    return name[-len(suffix) :] if suffix in SUFFIXES else ""


def class_in(fields: Mapping[str, Any]) -> str | None:
    """The class in an object of JSON, found by its name."""
    lower = {name.casefold(): value for name, value in fields.items()}
    return next((told for name in CLASSES if (told := class_name(lower.get(name))) is not None), None)


def _by_name(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    classes: dict[str, str] = {}
    for number, (name, value) in enumerate(pairs, start=1):
        told = class_name(value)
        if told is None or class_name(name) is None:
            raise ValueError(f"row {number} gives no class: {str(name)[:80]!r}, {str(value)[:80]!r}")
        key = unicodedata.normalize("NFC", str(class_name(name))).removeprefix("./").lstrip("/")
        told = unicodedata.normalize("NFC", told)
        if classes.setdefault(key, told) != told:
            raise ValueError(f"{key!r} has the classes {classes[key]!r} and {told!r}")
    if not classes:
        raise ValueError("it is empty")
    return classes


def _json_pairs(document: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(document, dict):
        fields = cast("dict[str, Any]", document)
        if not isinstance(fields.get("labels"), list | dict):
            return fields.items()
        return _json_pairs(fields["labels"])
    if not isinstance(document, list):
        raise ValueError("it is neither a list nor an object")
    return (_json_pair(row) for row in cast("list[Any]", document))


def _json_pair(row: Any) -> tuple[Any, Any]:
    pair, fields = cast("list[Any]", row), cast("dict[str, Any]", row)
    if isinstance(row, list) and len(pair) == 2:
        return pair[0], pair[1]
    if isinstance(row, dict):
        lower = {name.casefold(): value for name, value in fields.items()}
        name = next((lower[name] for name in FILES if name in lower), None)
        return name, class_in(fields)
    raise ValueError("one of its rows is no pair of a name and a class")


def _csv_pairs(text: str, delimiter: str | None) -> Iterable[tuple[Any, Any]]:
    head = text.partition("\n")[0]
    if delimiter is None:
        delimiter = max(",;\t", key=head.count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    file = next((header.index(name) for name in FILES if name in header), None)
    told = next((header.index(name) for name in CLASSES if name in header), None)
    if file is None and told is None:
        file, told, body = 0, 1, rows
        if len(header) != 2:
            raise ValueError(f"its columns are {', '.join(header)[:200]}")
    elif file is None or told is None:
        raise ValueError(f"its columns are {', '.join(header)[:200]}")
    else:
        body = rows[1:]
    if any(len(row) <= max(file, told) for row in body):
        raise ValueError("a row has too few cells")
    boxes = told < len(header) and header[told] == BOXES
    return ((row[file], row[told].partition(" ")[0] if boxes else row[told]) for row in body)


def _text(where: str, text: str) -> LabelFile:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = [line.rsplit(None, 1) for line in lines]
    if words and all(len(line) == 1 for line in words):
        return LabelFile(where, {}, [unicodedata.normalize("NFC", line) for line in lines])
    if any(len(line) == 1 for line in words):
        raise ValueError("some of its lines hold one word alone")
    return LabelFile(where, _by_name((name, told) for name, told in words))
