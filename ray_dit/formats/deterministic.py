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
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def parquet_bytes(table: pa.Table, facts: Mapping[str, Any], *, name: str = "facts") -> bytes:
    """Parquet of a table, in one row group, with ``facts`` as JSON in its metadata under ``name``."""
    sink = io.BytesIO()
    metadata = {name: json.dumps(facts, sort_keys=True)}
    pq.write_table(
        table.combine_chunks().replace_schema_metadata(metadata),
        sink,
        row_group_size=max(1, table.num_rows),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=True,
        data_page_size=1 << 20,
        version="2.6",
    )
    return sink.getvalue()


def read_parquet(source: BinaryIO | bytes, *, name: str = "facts") -> tuple[pa.Table, Any]:
    """The table, and what ``parquet_bytes`` was given as ``facts``.

    None where the metadata has no such entry.
    """
    table = pq.read_table(io.BytesIO(source) if isinstance(source, bytes) else source)
    facts = (table.schema.metadata or {}).get(name.encode())
    return table, None if facts is None else json.loads(facts)


def array_sha256(array: NDArray[Any]) -> str:
    """sha256 of an array's values: the same for the same pixels, whatever file holds them."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
