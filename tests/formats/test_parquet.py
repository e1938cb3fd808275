"""Image shards as Parquet: what `datasets` sees in them, and what decides their bytes."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ray_dit.core.media import png
from tests.support import tiny


def pictures(count: int) -> list[bytes]:
    return [png(np.full((4, 4, 3), (number, 0, 0), np.uint8)) for number in range(count)]


def test_datasets_sees_images_and_class_names(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "train-0.parquet").write_bytes(
        tiny.shard_bytes(pictures(3), [0, 1, 1], [7, 8, 9], ["cat", "dog"])
    )
    data = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(data, datasets.Dataset)
    assert isinstance(data.features["image"], datasets.Image)
    assert data.features["label"].names == ["cat", "dog"]
    assert data[2]["image"].getpixel((0, 0)) == (2, 0, 0)
    assert data["label"][:] == [0, 1, 1]
    assert data["id"][:] == [7, 8, 9]


def test_one_row_group_nothing_compressed_and_names_by_number() -> None:
    file = pq.ParquetFile(io.BytesIO(tiny.shard_bytes(pictures(3), [0, 1, 1], [7, 8, 9], ["cat", "dog"])))
    assert file.num_row_groups == 1
    column = file.metadata.row_group(0).column(0)
    assert column.compression == "UNCOMPRESSED"
    assert not column.has_dictionary_page
    assert [row["path"] for row in file.read()["image"].to_pylist()] == [
        "000000007.png",
        "000000008.png",
        "000000009.png",
    ]
