"""Parquet files with a column of images, as Hugging Face lays them out: what lies where, and single images.

A place is (object, group, row). Parquet compresses pages of many rows, so that no image can be read alone:
the row group it lies in is read, and kept for the next ones. Knows no layout of names.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_dit.core.to_rgb import UnreadableImage
from ray_dit.errors import UserError, first_message
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.label_file import CLASSES
from ray_dit.formats.rows import Piece, Source

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
"""Names of a column of images, in order of preference, where no feature says which it is."""
LABELS = (*CLASSES, "fine_label", "labels")
METADATA = b"huggingface"
LARGEST_COLUMN = 128 << 20
"""Unpacked bytes of a row group's names or labels, at most."""
BYTES_KEPT = 256 << 20
"""Bytes of row groups that a process keeps for the next images; of one alone it keeps all."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold what."""

    image: str
    in_struct: bool
    """Whether the image is a struct of bytes and path, or bytes alone."""
    has_path: bool
    label: str | None
    names: tuple[str, ...]
    """Of classes, where the label is a ClassLabel."""


@dataclass(frozen=True)
class Part:
    """The rows of a row group: paths and labels as they are written."""

    group: int
    paths: list[str | None]
    labels: list[Any]


def columns_of(schema: pa.Schema, where: str) -> Columns:
    """Finds the columns; UserError where there is no image, or several labels to choose from."""
    features = _features(schema)
    lower = {name.casefold(): name for name in schema.names}
    told = [name for name in schema.names if _kind(features, name) == "Image"]
    likely = [lower[name] for name in IMAGES if name in lower]
    image = next((name for name in (*told, *likely) if _is_image(schema.field(name).type)), None)
    if image is None:
        raise UserError(
            f"{where} has no column of encoded images (its columns: {', '.join(schema.names)[:200]}): it is "
            "to hold bytes, or structs of bytes and path, in a column called image"
        )
    kind = schema.field(image).type
    in_struct = pa.types.is_struct(kind)
    label = _label_column(schema, features, lower, where)
    names: Any = features[label].get("names") if label is not None and label in features else None
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return Columns(
        image,
        in_struct,
        in_struct and kind.get_field_index("path") >= 0,
        label,
        tuple(names) if known else (),
    )


def parts_of(source: Source, piece: Piece) -> tuple[Columns, Iterator[Part]]:
    """The columns of a file, and the rows of its row groups, without images; UserError for a damaged one."""
    where = f"{source.uri}/{piece.object}"
    with _saying(where):
        file = pq.ParquetFile(source.open_file(piece.object))
        if file.metadata.num_rows > piece.size:
            raise ValueError(f"{file.metadata.num_rows} rows in {piece.size} bytes")
        columns = columns_of(file.schema_arrow, where)
    return columns, _parts(file, columns, where)


class GroupCache:
    """The images of the row groups read last, in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int], pa.Array] = OrderedDict()

    def image(self, source: Source, key: str, group: int, row: int) -> bytes:
        """The bytes of an image; UnreadableImage where there are none."""
        name = (source.uri, key, group)
        with self._lock:  # so that of threads that want one group, one reads it
            if name not in self._kept:
                self._kept[name] = _images_of(source, key, group)
                while len(self._kept) > 1 and sum(map(_bytes_of, self._kept.values())) > BYTES_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(name)
            found = self._kept[name][row].as_py()
        if found is None:
            raise UnreadableImage("its cell holds no bytes (a path alone leads out of the file)")
        return cast("bytes", found)

    def forget(self, source: Source, key: str) -> None:
        """Drops what was read of an object, which may be another one by now."""
        with self._lock:
            for name in [name for name in self._kept if name[:2] == (source.uri, key)]:
                del self._kept[name]

    def __reduce__(self) -> tuple[type["GroupCache"], tuple[()]]:
        return GroupCache, ()


def _bytes_of(array: pa.Array) -> int:
    return int(array.nbytes)


def _parts(file: pq.ParquetFile, columns: Columns, where: str) -> Iterator[Part]:
    wanted = [f"{columns.image}.path"] if columns.has_path else []
    wanted += [columns.label] if columns.label is not None else []
    with _saying(where):
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            _refuse_large_columns(file.metadata.row_group(group), {*wanted})
            table: Any = file.read_row_group(group, columns=wanted) if wanted else None
            if wanted and table.num_rows != rows:
                raise ValueError(f"a row group of {rows} rows has {table.num_rows}")
            paths = _field(table[columns.image], "path").to_pylist() if columns.has_path else [None] * rows
            labels = [None] * rows if columns.label is None else table[columns.label].to_pylist()
            yield Part(group, paths, labels)


def _images_of(source: Source, key: str, group: int) -> pa.Array:
    """The encoded images of a row group, as bytes."""
    where = f"{source.uri}/{key}"
    with _saying(where):
        file = pq.ParquetFile(source.open_file(key))
        columns = columns_of(file.schema_arrow, where)
        name = f"{columns.image}.bytes" if columns.in_struct else columns.image
        column = file.read_row_group(group, columns=[name])[columns.image]
        return _field(column, "bytes") if columns.in_struct else _one(column)


def _field(column: pa.ChunkedArray, name: str) -> pa.Array:
    """A field of structs, empty where the struct is."""
    return cast("Any", pc).struct_field(_one(column), name)


def _one(column: pa.ChunkedArray) -> pa.Array:
    """A column of a row group as one array; only its type decides how many chunks pyarrow makes of it."""
    return column.combine_chunks()


def _refuse_large_columns(group: Any, wanted: set[str]) -> None:
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in wanted and column.total_uncompressed_size > LARGEST_COLUMN:
            raise ValueError(
                f"the column {column.path_in_schema} unpacks to more than 128 MiB in one row group"
            )


def _label_column(
    schema: pa.Schema, features: dict[str, Any], lower: dict[str, str], where: str
) -> str | None:
    """The column of classes: the one called so, else the only ClassLabel; UserError for several of these."""
    declared = [name for name in schema.names if _kind(features, name) == "ClassLabel"]
    named = [lower[name] for name in LABELS if name in lower]
    for name in (*(name for name in named if name in declared), *(declared if len(declared) == 1 else ())):
        return name
    if declared:
        raise UserError(
            f"{where} has several columns of classes ({', '.join(declared)}): call the one you want label"
        )
    return next((name for name in named if _is_class(schema.field(name).type)), None)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face's metadata say of the columns; nothing where they are none."""
    try:
        document = parse_json((schema.metadata or {}).get(METADATA, b"{}"))
        features = document["info"]["features"]
        return cast("dict[str, Any]", features) if isinstance(features, dict) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _kind(features: dict[str, Any], name: str) -> str | None:
    feature = features.get(name)
    return cast("dict[str, Any]", feature).get("_type") if isinstance(feature, dict) else None


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_image(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_class(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


@contextmanager
def _saying(where: str) -> Generator[None]:
    """Turns what pyarrow raises on damaged bytes into a sentence."""
    try:
        yield
    except (pa.ArrowException, ValueError, KeyError, OSError, IndexError) as error:
        raise UserError(
            f"{where} is no Parquet file that can be read ({first_message(error)}): make it again"
        ) from error
