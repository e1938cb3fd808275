"""Images in Parquet as ``datasets`` reads and writes them: shards of a dataset, and files of anybody's.

Columns of what is written: ``image`` (struct of bytes and path, as Hugging Face's Image feature), ``label``
(ClassLabel) and ``id``. The bytes are a function of the rows alone. What others wrote is opened by
``parquet_images.py``.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa

from ray_dit.errors import UserError
from ray_dit.formats.clutter import suffix_of
from ray_dit.formats.deterministic import damaged, parquet_bytes, read_parquet
from ray_dit.formats.image_format import Entry, ImageShard, InputFormat, OutputFormat, object_pieces
from ray_dit.formats.label_file import class_name
from ray_dit.formats.merging import Layout
from ray_dit.formats.parquet_images import BYTES_KEPT, Columns, GroupCache, Part, parts_of
from ray_dit.formats.rows import Piece, Place, Rows, Source

_METADATA = "huggingface"
"""Where `datasets` looks for the columns' meaning."""
_IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_COLUMNS = {"image": _IMAGE_TYPE, "label": pa.int64(), "id": pa.int64()}


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
        """One object."""
        image = pa.StructArray.from_arrays(
            [pa.array(shard.images, pa.binary()), pa.array(shard.names, pa.string())],
            fields=list(_IMAGE_TYPE),
        )
        table = pa.table(
            {
                "image": image,
                "label": pa.array(shard.labels, pa.int64()),
                "id": pa.array(shard.ids, pa.int64()),
            }
        )
        features: dict[str, Any] = {
            "image": {"_type": "Image"},
            "label": {"names": list(shard.classes), "_type": "ClassLabel"},
            "id": {"dtype": "int64", "_type": "Value"},
        }
        return {name + self.suffix: parquet_bytes(table, {"info": {"features": features}}, name=_METADATA)}

    def read(self, source: Source, keys: Sequence[str]) -> ImageShard:
        """The rows of the one object."""
        (key,) = keys
        with source.open_file(key) as file:
            table, facts = read_parquet(file, _COLUMNS, where=f"{source.uri}/{key}", name=_METADATA)
        try:
            images = [row["bytes"] for row in table["image"].to_pylist()]
            classes = facts["info"]["features"]["label"]["names"]
            if (
                None in images
                or not isinstance(classes, list)
                or not all(isinstance(n, str) for n in classes)
            ):
                raise ValueError("images or names of classes are missing")
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(f"{source.uri}/{key}", error) from error
        return ImageShard(
            images, table["label"].to_numpy(), table["id"].to_numpy(), tuple(cast("list[str]", classes))
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
