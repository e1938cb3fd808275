"""Where the rows of a latent shard lie in its bytes, and what it says of them beside their moments.

Known from its footer alone: a column of moments is one page per row group, uncompressed and without empty
cells, so its values end where the column's chunk ends. Knows no store; whoever reads a row compares its
CRC-32.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportAttributeAccessIssue=false

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_dit.formats.json_text import parse_json
from ray_dit.formats.latents import VIEWS, LatentShard, check_column, row_checks, views_of


@dataclass(frozen=True)
class ShardLayout:
    """Where the rows of a shard lie."""

    shape: tuple[int, ...]
    """[2C, H, W] of a row's moments, which are float16."""
    firsts: NDArray[np.int64]
    """First row of each block of rows that lie one after the other, [G]."""
    starts: NDArray[np.int64]
    """Where the block's first row begins, in each view, [G, V]."""
    rows: int


@dataclass(frozen=True)
class RowFacts:
    """What a shard says of its rows."""

    keys: pa.ChunkedArray
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    checks: NDArray[np.uint32]
    """CRC-32 of the moments of each row and view, [N, V]."""

    def held_back(self, keys: Any) -> "RowFacts":
        """The same with the rows of these keys held out, and without keys, which take the most memory."""
        heldout = self.heldout | pc.is_in(self.keys, value_set=keys).to_numpy()
        return replace(self, keys=pa.chunked_array([], pa.string()), heldout=heldout)


def key_array(keys: Collection[str]) -> Any:
    """Keys as ``RowFacts.held_back`` takes them."""
    return pa.array(list(keys), pa.string())


def described(shard: LatentShard) -> tuple[ShardLayout, RowFacts, bytes]:
    """A shard's rows as bytes, the first view's and then the second's, and what is known of them."""
    views, rows = views_of(shard), len(shard.keys)
    blocks = min(rows, 1)
    starts = np.arange(len(views), dtype=np.int64) * shard.moments.nbytes
    layout = ShardLayout(
        shard.moments.shape[1:], np.zeros(blocks, np.int64), np.tile(starts, (blocks, 1)), rows
    )
    facts = RowFacts(
        keys=pa.chunked_array([key_array(shard.keys)]),
        labels=shard.labels,
        heldout=shard.heldout,
        checks=np.stack([row_checks(view) for view in views], axis=1),
    )
    return layout, facts, b"".join(view.tobytes() for view in views)


def index_spans(data: bytes) -> tuple[tuple[int, int], ...]:
    """Where in the bytes of a shard all lies that is no moments: the other columns and the footer."""
    parquet = pq.ParquetFile(pa.BufferReader(data))
    groups = [_moments(parquet, number)[1] for number in range(parquet.metadata.num_row_groups)]
    return tuple(_between([span for spans in groups for span in spans], len(data)))


def index_facts(data: bytes) -> dict[str, Any]:
    """The facts by which a shard's rows can be read one by one."""
    spans = index_spans(data)
    pieces = {start: data[start:end] for start, end in spans}
    return {"index_sha256": pieces_sha256(pieces), "index_spans": spans}


def read_pieces(pieces: Mapping[int, bytes], size: int) -> tuple[ShardLayout, RowFacts]:
    """What a shard of ``size`` bytes says of its rows, by the bytes of its ``index_spans``.

    Each is given under its start. They must be known to be what was written, as libraries may fail badly on
    other bytes; ValueError if it is no shard whose rows can be read one by one.
    """
    try:
        parquet = pq.ParquetFile(_sparse(pieces, size))
        layout = _layout(parquet)
        return layout, _row_facts(parquet)
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def pieces_sha256(pieces: Mapping[int, bytes]) -> str:
    """sha256 of the bytes of a shard's ``index_spans``, each given under its start."""
    digest = hashlib.sha256()
    for start in sorted(pieces):
        digest.update(pieces[start])
    return digest.hexdigest()


def _sparse(pieces: Mapping[int, bytes], size: int) -> pa.BufferReader:
    """A file of which only these pieces are known; the rest takes no memory, as nobody reads it."""
    space = np.zeros(size, np.uint8)
    for start, data in pieces.items():
        if not 0 <= start <= start + len(data) <= size:
            raise ValueError("its parts lie outside of it")
        space[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return pa.BufferReader(pa.py_buffer(space))


def _row_facts(parquet: Any) -> RowFacts:
    checks = [name for name in map(check_column, VIEWS) if name in parquet.schema_arrow.names]
    types = {"key": pa.string(), "label": pa.int64(), "heldout": pa.bool_()}
    types |= dict.fromkeys(checks, pa.uint32())
    table = parquet.read(columns=[*types], use_threads=False)
    for name, kind in types.items():
        if table[name].type != kind or table[name].null_count:
            raise ValueError(f"the column {name} is {table[name].type}")
    return RowFacts(
        keys=table["key"],
        labels=table["label"].to_numpy(),
        heldout=table["heldout"].to_numpy(),
        checks=np.stack([table[name].to_numpy() for name in checks], axis=1),
    )


def _layout(parquet: Any) -> ShardLayout:
    facts = parse_json((parquet.schema_arrow.metadata or {})[b"facts"])
    shape = tuple(int(side) for side in facts["moments_shape"])
    row_bytes = 2 * math.prod(shape)
    if min(shape, default=0) < 1:
        raise ValueError(f"moments of shape {shape}")
    firsts, starts, first = list[int](), list[list[int]](), 0
    for number in range(parquet.metadata.num_row_groups):
        rows, spans = _moments(parquet, number)
        if rows:
            firsts.append(first)
            starts.append([end - rows * row_bytes for _, end in spans])
        if any(rows * row_bytes > end - start for start, end in spans):
            raise ValueError(f"its moments are shorter than {rows} rows")
        first += rows
    views = sum(name in parquet.schema_arrow.names for name in VIEWS)
    return ShardLayout(
        shape, np.array(firsts, np.int64), np.array(starts, np.int64).reshape(len(starts), views), first
    )


def _moments(parquet: Any, number: int) -> tuple[int, list[tuple[int, int]]]:
    """How many rows a row group has, and where in the shard the chunks of its moments lie."""
    group = parquet.metadata.row_group(number)
    spans: list[tuple[int, int]] = []
    for at in range(group.num_columns):
        column = group.column(at)
        if column.path_in_schema.partition(".")[0] in VIEWS:
            if column.total_compressed_size != column.total_uncompressed_size or column.has_dictionary_page:
                raise ValueError(f"the column {column.path_in_schema} is compressed")
            start = column.data_page_offset
            spans.append((start, start + column.total_compressed_size))
    return group.num_rows, spans if group.num_rows else []


def _between(taken: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What lies between these spans, before and after them."""
    end = 0
    for start, stop in sorted(taken):
        if start > end:
            yield end, start
        end = stop
    yield end, size
