"""Image shards as Parquet that ``datasets.load_dataset`` opens, one object per shard.

Columns: ``image`` (struct of bytes and path, as Hugging Face's Image feature), ``label`` (ClassLabel) and
``id``. The bytes are a function of the rows alone.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa

from ray_dit.formats.deterministic import damaged, parquet_bytes, read_parquet
from ray_dit.formats.image_format import ImageShard, OutputFormat, Source

_METADATA = "huggingface"
"""Where `datasets` looks for the columns' meaning."""
_IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_COLUMNS = {"image": _IMAGE_TYPE, "label": pa.int64(), "id": pa.int64()}


class Parquet(OutputFormat):
    """The format `generate` writes; `datasets` finds Image and ClassLabel features in it."""

    suffix = ".parquet"

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
