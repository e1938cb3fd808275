"""The two shard formats, as Parquet bytes that are a function of their rows alone; knows no store and no model.

Latents: ``key``, ``label``, ``heldout``, ``moments`` (float16, flattened [2C, H, W]) and ``moments_mirror`` where the
mirror image was encoded too. Images: ``image`` (struct of bytes and path, as Hugging Face's Image feature), ``label``
(ClassLabel) and ``id``. One schema, one row group a shard, no dictionary and no compression for what is binary, no
clock in the metadata: the same rows give the same bytes with one version of pyarrow.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True)
class LatentShard:
    """Rows of a latent shard: moments are float16 [N, 2C, H, W]; ``moments_mirror`` is None where mirrors are off."""

    keys: list[str]
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    moments: NDArray[np.float16]
    moments_mirror: NDArray[np.float16] | None


def latent_shard_bytes(shard: LatentShard) -> bytes:
    """Parquet bytes of a latent shard."""
    columns: dict[str, pa.Array] = {
        "key": pa.array(shard.keys, pa.string()),
        "label": pa.array(shard.labels, pa.int64()),
        "heldout": pa.array(shard.heldout, pa.bool_()),
        "moments": _tensor_column(shard.moments),
    }
    if shard.moments_mirror is not None:
        columns["moments_mirror"] = _tensor_column(shard.moments_mirror)
    table = pa.table(columns)
    return parquet_bytes(table, {"moments_shape": shard.moments.shape[1:]})


def read_latent_shard(source: BinaryIO | bytes) -> LatentShard:
    """The rows of a latent shard."""
    table = pq.read_table(_file(source))
    shape = tuple(json.loads((table.schema.metadata or {})[b"facts"])["moments_shape"])
    return LatentShard(
        keys=table["key"].to_pylist(),
        labels=table["label"].to_numpy(),
        heldout=table["heldout"].to_numpy(),
        moments=_column_tensor(table, "moments", shape),
        moments_mirror=_column_tensor(table, "moments_mirror", shape)
        if "moments_mirror" in table.column_names
        else None,
    )


def image_shard_bytes(
    images: Sequence[bytes],
    labels: Sequence[int],
    ids: Sequence[int],
    names: Sequence[str],
    *,
    suffix: str = "png",
) -> bytes:
    """Parquet bytes of an image shard.

    ``images`` are encoded pictures, ``names`` the names of all classes in label order. ``datasets.load_dataset`` finds
    Image and ClassLabel features in it.
    """
    paths = [f"{sample_id:09d}.{suffix}" for sample_id in ids]
    image = pa.StructArray.from_arrays(
        [pa.array(images, pa.binary()), pa.array(paths, pa.string())], fields=list(_IMAGE_TYPE)
    )
    table = pa.table({"image": image, "label": pa.array(labels, pa.int64()), "id": pa.array(ids, pa.int64())})
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
        "id": {"dtype": "int64", "_type": "Value"},
    }
    return parquet_bytes(table, {"info": {"features": features}}, name="huggingface")


@dataclass(frozen=True)
class ImageShard:
    """Rows of an image shard: encoded pictures, labels, ids."""

    images: list[bytes]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]


def read_image_shard(source: BinaryIO | bytes) -> ImageShard:
    """The rows of an image shard."""
    table = pq.read_table(_file(source))
    return ImageShard(
        images=[row["bytes"] for row in table["image"].to_pylist()],
        labels=table["label"].to_numpy(),
        ids=table["id"].to_numpy(),
    )


def array_sha256(array: NDArray[Any]) -> str:
    """sha256 of an array's values: the same for the same pixels, whatever file holds them."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


_IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def parquet_bytes(table: pa.Table, facts: Mapping[str, Any], *, name: str = "facts") -> bytes:
    """Parquet of a table, in one row group, with ``facts`` as JSON in the schema's metadata under ``name``."""
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


def _tensor_column(values: NDArray[np.float16]) -> pa.Array:
    flat = np.ascontiguousarray(values, dtype=np.float16).reshape(len(values), math.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _column_tensor(table: pa.Table, name: str, shape: tuple[int, ...]) -> NDArray[np.float16]:
    column = table[name].combine_chunks()
    array: pa.Array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy().reshape(len(array), *shape)


def _file(source: BinaryIO | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source
