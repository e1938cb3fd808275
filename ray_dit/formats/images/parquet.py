"""Images in Parquet as ``datasets`` reads and writes them: shards of a dataset, and files of anybody's.

Columns of what is written: ``image`` (struct of bytes and path, as Hugging Face's Image feature), ``label``
(ClassLabel) where there are classes, ``id``, and settings that vary. The bytes are a function of the rows
alone. What others wrote is opened by ``parquet_images.py``.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa

from ray_dit.core.media import Encoding
from ray_dit.errors import UserError
from ray_dit.formats.clutter import suffix_of
from ray_dit.formats.dataset_card import Card, Kind
from ray_dit.formats.deterministic import damaged, grouped_parquet_bytes, parquet_bytes, read_parquet
from ray_dit.formats.image_format import (
    Entry,
    ImageShard,
    InputFormat,
    OutputFormat,
    dtype_name,
    object_pieces,
)
from ray_dit.formats.label_file import class_name
from ray_dit.formats.merging import Layout
from ray_dit.formats.parquet_images import BYTES_KEPT, Columns, GroupCache, Part, parts_of
from ray_dit.formats.rows import Piece, Place, Rows, Source

_METADATA = "huggingface"
"""Where `datasets` looks for the columns' meaning."""
_IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_COLUMNS = {"image": _IMAGE_TYPE, "id": pa.int64()}
_LOOKED_UP = ("label", "id")
"""Columns by whose values readers choose row groups."""
GROUP_ROWS, GROUP_BYTES = 100, 256 << 20
"""Of a row group, at most: the hub's viewer reads none of more than 286 MiB, and a stream reads one whole."""
_OPENED = """from datasets import load_dataset

dataset = load_dataset({where}, split="train")"""


class Parquet(InputFormat, OutputFormat):
    """The format `generate` writes; `datasets` finds Image and ClassLabel features in it.

    Of images that are read, the key is the class and the file name beside the bytes. It is the file and the
    number of the row where those names are missing or not unique, and where a set too large to be kept would
    be read in leaps by them: each image takes the row group it lies in.
    """

    suffix = ".parquet"
    layout = Layout(names_repeat=True)

    def __init__(self) -> None:
        self._groups = GroupCache()

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """By the names of the objects."""
        return any(suffix_of(entry.key) == self.suffix for entry in first)

    def pieces(self, source: Source) -> Sequence[Piece]:
        """One per file."""
        found = object_pieces(source, self.suffix)
        is_of_many = sum(piece.size for piece in found) > BYTES_KEPT
        return [replace(piece, is_of_many=is_of_many) for piece in found]

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Reads names and labels, row group by row group."""
        self._groups.forget(source, piece.object)
        columns, found = parts_of(source, piece)
        parts = list(found)
        labels = [label for part in parts for label in part.labels]
        groups = [np.full(len(part.labels), part.group, np.int64) for part in parts]
        rows = [np.arange(len(part.labels), dtype=np.int64) for part in parts]
        none = [np.zeros(0, np.int64)]
        numbers = _numbers(labels, columns, f"{source.uri}/{piece.object}") if columns.names else None
        if numbers is None:
            told = [class_name(label) or "" for label in labels]
        else:
            told = [columns.names[number] for number in numbers.tolist()]
        names = _names(parts, told, ordered=piece.is_of_many)
        stem = piece.object.removesuffix(self.suffix)
        return Rows.in_object(
            piece,
            names or [f"{stem}/{row:09d}" for row in range(len(labels))],
            {"group": np.concatenate(none + groups), "row": np.concatenate(none + rows)},
            keyed=names is None,
            classes=told if numbers is None else None,
            declared=columns.names,
            labels=numbers,
        )

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The cell; its row group is read, unless the image before was of it."""
        return self._groups.image(source, str(place["object"]), int(place["group"]), int(place["row"]))

    def write(self, shard: ImageShard, name: str) -> dict[str, bytes]:
        """One object, in row groups of about a hundred images."""
        facts = {"info": {"features": _features(shard)}}
        if shard.layout == 1:
            data = parquet_bytes(_table(shard, 0, len(shard.ids)), facts, name=_METADATA)
        else:
            groups = (_table(shard, first, stop) for first, stop in _groups(shard))
            data = grouped_parquet_bytes(groups, facts, name=_METADATA, statistics=_LOOKED_UP)
        return {name + self.suffix: data}

    def read(self, source: Source, keys: Sequence[str]) -> ImageShard:
        """The rows of the one object."""
        key = keys[0]
        with source.open_file(key) as file:
            table, facts = read_parquet(file, _COLUMNS, where=f"{source.uri}/{key}", name=_METADATA)
        try:
            return _shard(table, facts["info"]["features"])
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(f"{source.uri}/{key}", error) from error

    def card(self, shard: ImageShard) -> Card:
        """`datasets` finds the columns' meaning in each shard, too."""
        label: dict[str, Kind] = {"label": shard.classes or "int64"} if _has_label(shard) else {}
        settings = {name: dtype_name(column) for name, column in shard.settings.items()}
        return Card(
            columns={"image": "image", **label, "id": "int64", **settings},
            data="data/{prefix}train-*",
            opened=_OPENED.format(where='"parquet", data_files="data/train-*.parquet"'),
            extended=_OPENED.format(where='"."'),
            counted=shard.layout == 1,
        )


def _has_label(shard: ImageShard) -> bool:
    return bool(shard.classes) or shard.layout == 1


def _features(shard: ImageShard) -> dict[str, Any]:
    """What `datasets` is to make of the columns."""
    label = {"label": {"names": list(shard.classes), "_type": "ClassLabel"}} if _has_label(shard) else {}
    settings = {
        name: {"dtype": dtype_name(column), "_type": "Value"} for name, column in shard.settings.items()
    }
    return {
        "image": {"_type": "Image"},
        **label,
        "id": {"dtype": "int64", "_type": "Value"},
        **settings,
    }


def _groups(shard: ImageShard) -> Iterator[tuple[int, int]]:
    """First and last row, which is not in it, of each row group; one at least."""
    first = size = 0
    for row, image in enumerate(shard.images):
        if row > first and (row - first == GROUP_ROWS or size + len(image) > GROUP_BYTES):
            yield first, row
            first, size = row, 0
        size += len(image)
    yield first, len(shard.images)


def _table(shard: ImageShard, first: int, stop: int) -> pa.Table:
    """The rows from ``first`` to ``stop``."""
    image = pa.StructArray.from_arrays(
        [pa.array(shard.images[first:stop], pa.binary()), pa.array(shard.names[first:stop], pa.string())],
        fields=list(_IMAGE_TYPE),
    )
    label = {"label": pa.array(shard.labels[first:stop], pa.int64())} if _has_label(shard) else {}
    settings = {name: pa.array(column[first:stop]) for name, column in shard.columns.items()}
    return pa.table({"image": image, **label, "id": pa.array(shard.ids[first:stop], pa.int64()), **settings})


def _shard(table: pa.Table, features: Any) -> ImageShard:
    """The inverse of ``_table``; ValueError, KeyError or TypeError for another table."""
    rows = table["image"].to_pylist()
    images, paths = ([row[field] for row in rows] for field in ("bytes", "path"))
    classes: Any = features["label"]["names"] if "label" in features else []
    if None in images or not isinstance(classes, list) or not all(isinstance(n, str) for n in classes):
        raise ValueError("images or names of classes are missing")
    labels = table["label"] if "label" in table.column_names else pa.array([0] * len(rows), pa.int64())
    if labels.type != pa.int64():
        raise ValueError(f"the column label is {labels.type} instead of int64")
    settings = [name for name in table.column_names if name not in ("image", "label", "id")]
    suffix = str(paths[0])[-4:] if paths else ""
    known: dict[str, Encoding] = {".jpg": "jpeg", "webp": "webp"}
    return ImageShard(
        images,
        labels.to_numpy(),
        table["id"].to_numpy(),
        tuple(cast("list[str]", classes)),
        settings={name: np.array(table[name].to_pylist()) for name in settings},
        encoding=known.get(suffix, "png"),
    )


def _names(parts: Sequence[Part], classes: Sequence[str], *, ordered: bool) -> list[str] | None:
    """The file name of each image of a file; None where they are not unique, or out of order."""
    paths = [path for part in parts for path in part.paths]
    names = [path.replace("\\", "/").rpartition("/")[2] for path in paths if path]
    keys = [*zip(classes, names, strict=False)]
    if not names or len(names) < len(paths) or not all(names) or len({*keys}) < len(keys):
        return None
    return names if not ordered or all(first < second for first, second in pairwise(keys)) else None


def _numbers(labels: Sequence[Any], columns: Columns, where: str) -> np.ndarray:
    """The numbers of declared classes; -1, which stands for none, where a cell is empty."""
    numbers = [-1 if label is None else label for label in labels]
    names = {name: number for number, name in enumerate(columns.names)}
    numbers = [names.get(label, len(columns.names)) if isinstance(label, str) else label for label in numbers]
    if any(not isinstance(number, int) or not -1 <= number < len(columns.names) for number in numbers):
        raise UserError(
            f"the column {columns.label} of {where} has labels beyond its {len(columns.names)} classes"
        )
    return np.array(numbers, dtype=np.int64)
