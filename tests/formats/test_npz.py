"""Archives of NumPy arrays that are not what `generate` writes."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ray_dit.core.media import encode
from ray_dit.errors import UserError
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.registry import output_format
from ray_dit.storage.open import open_store

SHARD = ImageShard(
    [encode(np.full((4, 4, 3), value, np.uint8), "bmp") for value in (0, 255)],
    np.array([1, 0]),
    np.array([6, 7]),
    ("cat", "dog"),
    encoding="bmp",
)


@pytest.mark.parametrize("wrong", ["ids", "arr_1", "both"])
def test_numbers_are_of_64_bits(wrong: str, tmp_path: Path) -> None:
    ((key, data),) = output_format("npz").write(SHARD, "shard").items()
    store = open_store(str(tmp_path))
    store.put(key, data)
    assert output_format("npz").read(store, [key]).labels.tolist() == [1, 0]
    with np.load(io.BytesIO(data)) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "info.json"}
        info = archive["info.json"]
    for name in ("ids", "arr_1") if wrong == "both" else (wrong,):
        arrays[name] = arrays[name].astype(np.int32)
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("info.json", info)
    with pytest.raises(UserError, match="do not fit together"):
        output_format("npz").read(store, ["other.npz"])
