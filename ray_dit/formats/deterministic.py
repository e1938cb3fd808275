"""Bytes that are a function of values alone, for the formats to build on.

They are the Parquet file of a table and the hash of an array.

One schema, one row group, no dictionary and no compression for what is binary, no clock in the metadata: the
same rows give the same bytes with one version of pyarrow.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_dit.errors import UserError, first_message
from ray_dit.formats.json_text import parse_json

_LIMIT = (1 << 31) - 1
"""Of the bytes and rows of a page."""


def parquet_bytes(
    table: pa.Table, facts: Mapping[str, Any], *, name: str = "facts", group_rows: int | None = None
) -> bytes:
    """Parquet of a table, in one row group, with ``facts`` as JSON in its metadata under ``name``.

    ``group_rows``: rows per row group instead, in each of which a column is then a single page.
    """
    sink = io.BytesIO()
    pages: dict[str, Any] = {"data_page_size": 1 << 20}
    if group_rows is not None:
        pages = {"data_page_size": _LIMIT, "max_rows_per_page": _LIMIT}
    metadata = {name: json.dumps(facts, sort_keys=True)}
    pq.write_table(
        table.combine_chunks().replace_schema_metadata(metadata),
        sink,
        row_group_size=group_rows or max(1, table.num_rows),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
        version="2.6",
        **pages,
    )
    return sink.getvalue()


def grouped_parquet_bytes(
    groups: Iterable[pa.Table], facts: Mapping[str, Any], *, name: str, statistics: Sequence[str]
) -> bytes:
    """As ``parquet_bytes``, a row group for each table, of which there is one at least.

    Readers find rows without reading all: these columns have ``statistics``, and pages an index.
    """
    sink = io.BytesIO()
    metadata = {name: json.dumps(facts, sort_keys=True)}
    writer: pq.ParquetWriter | None = None
    for table in groups:
        table = table.combine_chunks().replace_schema_metadata(metadata)
        writer = writer or pq.ParquetWriter(
            sink,
            table.schema,
            compression="none",
            use_dictionary=False,
            write_statistics=[*statistics],  # pyright: ignore[reportArgumentType]
            write_page_index=True,
            store_schema=True,
            data_page_size=1 << 20,
            version="2.6",
        )
        writer.write_table(table, row_group_size=max(1, table.num_rows))
    assert writer is not None
    writer.close()
    return sink.getvalue()


def read_parquet(
    source: BinaryIO | bytes,
    columns: Mapping[str, pa.DataType | None],
    *,
    where: str,
    name: str = "facts",
) -> tuple[pa.Table, Any]:
    """The table, and what ``parquet_bytes`` was given as ``facts``.

    ``columns`` must be there, without empty cells and, where one is given, of the type. UserError, naming
    ``where`` it lies, for what ``parquet_bytes`` did not write. Memory is bounded by the size of the source.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        parquet = pq.ParquetFile(file)
        _check_sizes(parquet.metadata, file.seek(0, io.SEEK_END))
        table = parquet.read()
        table.validate(full=True)
        _check_columns(table, columns)
        return table, parse_json((table.schema.metadata or {})[name.encode()])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(where, error) from error


def damaged(where: str, error: Exception) -> UserError:
    """What to raise where the bytes of an object are not those that were written."""
    return UserError(
        f"{where} is damaged ({first_message(error)}): run its stage again with --repair, or restore it"
    )


def _check_sizes(metadata: Any, size: int) -> None:
    """ValueError where a footer promises more than plain, uncompressed columns of so many bytes can hold."""
    if metadata.num_rows > 8 * size:
        raise ValueError(f"{metadata.num_rows} rows in {size} bytes")
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            if chunk.compression != "UNCOMPRESSED" or not {*chunk.encodings} <= {"PLAIN", "RLE"}:
                raise ValueError(f"the column {chunk.path_in_schema} is compressed")


def _check_columns(table: pa.Table, columns: Mapping[str, pa.DataType | None]) -> None:
    for name, kind in columns.items():
        if table.column_names.count(name) != 1:
            raise ValueError(f"there is no column {name}")
        if kind is not None and table[name].type != kind:
            raise ValueError(f"the column {name} is {table[name].type} instead of {kind}")
        if table[name].null_count:
            raise ValueError(f"the column {name} has empty cells")


def array_sha256(array: NDArray[Any]) -> str:
    """sha256 of an array's values: the same for the same pixels, whatever file holds them."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
