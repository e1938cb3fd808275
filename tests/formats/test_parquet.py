"""Image shards as Parquet: rows come back, and others' libraries read them."""

import io
from pathlib import Path

from PIL import Image

from ray_dit.formats.images.parquet import image_shard_bytes, read_image_shard


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
