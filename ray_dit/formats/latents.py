"""Latent shards as Parquet bytes that are a function of their rows alone.

Columns: ``key``, ``label``, ``heldout``, ``image_sha256`` (of the image's bytes; earlier versions had none),
``moments`` (float16, flattened [2C, H, W]) and ``moments_mirror`` where the mirror image was encoded too.
Before these a column for each, ``moments_crc32`` and ``moments_mirror_crc32``, with the CRC-32 of each row's
bytes. A column of moments is a single page per row group, so that a row's bytes lie where
``latent_layout.py`` says; earlier versions wrote pages of 1 MB and no CRC-32.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import math
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_dit.formats.deterministic import damaged, parquet_bytes, read_parquet

_HASH = "image_sha256"
_HASH_TYPE = pa.binary(32)
_COLUMNS = {"key": pa.string(), "label": pa.int64(), "heldout": pa.bool_(), "moments": None}
VIEWS = ("moments", "moments_mirror")
"""The columns of moments, the second only where mirror images were encoded."""
GROUP_BYTES = 1 << 30
"""Moments of a row group at most: a page has less than 2 GiB."""


@dataclass(frozen=True)
class LatentShard:
    """Rows of a latent shard.

    ``moments`` are float16 [N, 2C, H, W]; ``moments_mirror`` is None where mirrors are off.
    """

    keys: list[str]
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    moments: NDArray[np.float16]
    moments_mirror: NDArray[np.float16] | None
    image_sha256: NDArray[np.uint8] | None = None
    """[N, 32]; None in shards of earlier versions."""


def latent_shard_bytes(shard: LatentShard, *, by_row: bool = True, group_bytes: int = GROUP_BYTES) -> bytes:
    """Parquet bytes of a latent shard.

    Without ``by_row`` as earlier versions wrote it, whose rows can't be read one by one.
    """
    columns: dict[str, pa.Array] = {
        "key": pa.array(shard.keys, pa.string()),
        "label": pa.array(shard.labels, pa.int64()),
        "heldout": pa.array(shard.heldout, pa.bool_()),
        **_hash_column(shard.image_sha256),
    }
    views = dict(zip(VIEWS, views_of(shard), strict=False))
    if by_row:
        columns |= {check_column(name): pa.array(row_checks(view)) for name, view in views.items()}
    columns |= {name: _tensor_column(view) for name, view in views.items()}
    row_bytes = shard.moments.itemsize * math.prod(shard.moments.shape[1:])
    return parquet_bytes(
        pa.table(columns),
        {"moments_shape": shard.moments.shape[1:]},
        group_rows=max(1, group_bytes // max(1, row_bytes)) if by_row else None,
    )


def views_of(shard: LatentShard) -> list[NDArray[np.float16]]:
    """The moments, and those of the mirror images where there are any."""
    return [shard.moments] if shard.moments_mirror is None else [shard.moments, shard.moments_mirror]


def check_column(name: str) -> str:
    """The column that has the CRC-32 of each row of a column of moments."""
    return f"{name}_crc32"


def row_checks(moments: NDArray[np.float16]) -> NDArray[np.uint32]:
    """CRC-32 [N] of the bytes of each row."""
    return np.array([zlib.crc32(np.ascontiguousarray(row).data) for row in moments], np.uint32)


def channel_sums(latents: LatentShard) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Σ E z and Σ E z² of the latents over training rows, each [C].

    E z² = mean² + the posterior's variance.
    """
    moments = latents.moments[~latents.heldout].astype(np.float64)
    mean, log_variance = np.split(moments, 2, axis=1)
    second = np.square(mean) + np.exp(np.clip(log_variance, -30, 20))
    return mean.sum(axis=(0, 2, 3)), second.sum(axis=(0, 2, 3))


def read_latent_shard(source: BinaryIO | bytes, where: str = "a shard of latents") -> LatentShard:
    """The rows of a latent shard; UserError, naming ``where`` it lies, if the bytes are something else."""
    table, facts = read_parquet(source, _COLUMNS, where=where)
    try:
        shape = _shape(table, facts)
        if _HASH in table.column_names:
            _check_hashes(table)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(where, error) from error
    return LatentShard(
        keys=table["key"].to_pylist(),
        labels=table["label"].to_numpy(),
        heldout=table["heldout"].to_numpy(),
        moments=_column_tensor(table, "moments", shape),
        moments_mirror=_column_tensor(table, "moments_mirror", shape)
        if "moments_mirror" in table.column_names
        else None,
        image_sha256=_hashes(table) if _HASH in table.column_names else None,
    )


def read_latent_labels(file: BinaryIO, where: str) -> NDArray[np.int64]:
    """The labels of a latent shard, without reading the rest; UserError as ``read_latent_shard``."""
    try:
        return _labels(pq.ParquetFile(file).read(columns=["label"]))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(where, error) from error


def read_image_hashes(
    file: BinaryIO, where: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.uint8]]:
    """Labels, ``heldout`` and ``image_sha256`` [N, 32] of a latent shard that has them.

    Reads nothing else of it. UserError as ``read_latent_shard``.
    """
    try:
        table = pq.ParquetFile(file).read(columns=["label", "heldout", _HASH])
        _check_hashes(table)
        heldout = table["heldout"]
        if heldout.type != pa.bool_() or heldout.null_count:
            raise ValueError(f"the column heldout is {heldout.type}")
        return _labels(table), heldout.to_numpy(), _hashes(table)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(where, error) from error


def _labels(table: pa.Table) -> NDArray[np.int64]:
    labels = table["label"]
    if labels.type != pa.int64() or labels.null_count:
        raise ValueError(f"the column label is {labels.type}")
    return labels.to_numpy()


def _hash_column(hashes: NDArray[np.uint8] | None) -> dict[str, pa.Array]:
    if hashes is None:
        return {}
    data = pa.py_buffer(np.ascontiguousarray(hashes).tobytes())
    return {_HASH: pa.Array.from_buffers(_HASH_TYPE, len(hashes), [None, data])}


def _check_hashes(table: pa.Table) -> None:
    """ValueError where the column of hashes holds something else."""
    column = table[_HASH]
    if column.type != _HASH_TYPE or column.null_count:
        raise ValueError(f"the column {_HASH} is {column.type}")


def _hashes(table: pa.Table) -> NDArray[np.uint8]:
    data = b"".join(table[_HASH].to_pylist())
    return np.frombuffer(data, np.uint8).reshape(len(table), _HASH_TYPE.byte_width)


def _shape(table: pa.Table, facts: Any) -> tuple[int, ...]:
    """That of the moments of a row; ValueError unless they have as many numbers."""
    shape = tuple(int(side) for side in facts["moments_shape"])
    kind = pa.list_(pa.float16(), math.prod(shape))
    for name in ("moments", "moments_mirror"):
        if name in table.column_names and (table[name].type != kind or table[name].null_count):
            raise ValueError(f"the column {name} is {table[name].type} instead of {kind}")
    if min(shape, default=0) < 1:
        raise ValueError(f"moments of shape {shape}")
    return shape


def _tensor_column(values: NDArray[np.float16]) -> pa.Array:
    flat = np.ascontiguousarray(values, dtype=np.float16).reshape(len(values), math.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _column_tensor(table: pa.Table, name: str, shape: tuple[int, ...]) -> NDArray[np.float16]:
    column = table[name].combine_chunks()
    array: pa.Array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy().reshape(len(array), *shape)
