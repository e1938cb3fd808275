"""Image shards as Parquet that ``datasets.load_dataset`` opens; the bytes are a function of the rows alone.

Columns: ``image`` (struct of bytes and path, as Hugging Face's Image feature), ``label`` (ClassLabel) and ``id``.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_dit.formats.deterministic import parquet_bytes, read_parquet

_IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


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
    table = read_parquet(source)[0]
    return ImageShard(
        images=[row["bytes"] for row in table["image"].to_pylist()],
        labels=table["label"].to_numpy(),
        ids=table["id"].to_numpy(),
    )
