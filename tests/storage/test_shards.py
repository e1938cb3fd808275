"""Shard bytes are a function of the rows, and others' libraries read them."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ray_dit.storage.shards import (
    LatentShard,
    image_shard_bytes,
    latent_shard_bytes,
    read_image_shard,
    read_latent_shard,
)


def latents(mirror: bool = True, rows: int = 3) -> LatentShard:
    values = np.arange(rows * 8 * 2 * 2, dtype=np.float16).reshape(rows, 8, 2, 2)
    return LatentShard(
        keys=[f"a/{row}.png" for row in range(rows)],
        labels=np.arange(rows),
        heldout=np.arange(rows) % 2 == 0,
        moments=values,
        moments_mirror=-values if mirror else None,
    )


def test_latents_come_back() -> None:
    for shard in (latents(), latents(mirror=False), latents(rows=0)):
        again = read_latent_shard(latent_shard_bytes(shard))
        assert again.keys == shard.keys
        for name in ("labels", "heldout", "moments"):
            np.testing.assert_array_equal(getattr(again, name), getattr(shard, name))
        assert (again.moments_mirror is None) == (shard.moments_mirror is None)
        if shard.moments_mirror is not None and again.moments_mirror is not None:
            np.testing.assert_array_equal(again.moments_mirror, shard.moments_mirror)


def test_the_same_rows_are_the_same_bytes() -> None:
    assert latent_shard_bytes(latents()) == latent_shard_bytes(latents())
    assert latent_shard_bytes(latents()) != latent_shard_bytes(latents(mirror=False))


def test_one_row_group_and_nothing_compressed() -> None:
    file = pq.ParquetFile(io.BytesIO(latent_shard_bytes(latents())))
    assert file.num_row_groups == 1
    column = file.metadata.row_group(0).column(3)
    assert column.compression == "UNCOMPRESSED" and not column.has_dictionary_page


def pictures(count: int) -> list[bytes]:
    files: list[bytes] = []
    for number in range(count):
        sink = io.BytesIO()
        Image.new("RGB", (4, 4), (number, 0, 0)).save(sink, format="PNG")
        files.append(sink.getvalue())
    return files


def test_datasets_sees_images_and_class_names(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "train-0.parquet").write_bytes(
        image_shard_bytes(pictures(3), [0, 1, 1], [7, 8, 9], ["cat", "dog"])
    )
    data = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(data, datasets.Dataset)
    assert isinstance(data.features["image"], datasets.Image)
    assert data.features["label"].names == ["cat", "dog"]
    assert data[2]["image"].getpixel((0, 0)) == (2, 0, 0)
    assert data["label"][:] == [0, 1, 1] and data["id"][:] == [7, 8, 9]


def test_images_come_back() -> None:
    files = pictures(2)
    shard = read_image_shard(image_shard_bytes(files, [1, 0], [0, 1], ["a", "b"]))
    assert shard.images == files and shard.labels.tolist() == [1, 0] and shard.ids.tolist() == [0, 1]
