"""encode's threads, actors and reservations on a real Ray: when and where, never what."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.ledger.manifest import read_manifest
from ray_dit.results import LatentsResult
from ray_dit.stages.encode import encode
from ray_dit.storage.open import open_store
from tests.support.tiny import SIZE, contents, write_pictures, write_vae

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds, two of them bad."""
    folder = tmp_path_factory.mktemp("decoding")
    write_pictures(folder / "images", {"left": 13, "right": 12}, size=40)
    for path, mode in zip(sorted((folder / "images").rglob("*.png"))[::3], "LPLAPL", strict=False):
        Image.open(path).convert({"A": "RGBA"}.get(mode, mode)).save(path)
    (folder / "images/left/02.png").write_bytes(b"no image")
    cut = folder / "images/right/04.png"
    cut.write_bytes(cut.read_bytes()[:300])
    write_vae(folder / "vae")
    return folder


def settings(place: Path, output: str, **fields: Any) -> EncodeConfig:
    images = ImagesConfig(uri=str(place / "images"), size=SIZE, heldout=0.3, max_bad=0.2)
    given = {"shard_size": 4, "batch_size": 4, "actors": 1} | fields
    return EncodeConfig(images=images, vae=str(place / "vae"), output=str(place / output), **given)


@pytest.fixture(scope="module")
def whole(place: Path, one_ray: Any) -> dict[str, str]:
    """What one actor with one thread makes."""
    encode(settings(place, "latents", decode_threads=1))
    assert read_manifest(open_store(str(place / "latents")), LatentsResult).facts.bad == 2
    return contents(place / "latents")


@pytest.mark.parametrize(("threads", "actors"), [(3, 1), (1, 2), (7, 2)])
def test_threads_and_actors_change_no_byte(
    place: Path, whole: dict[str, str], threads: int, actors: int
) -> None:
    output = f"latents-{threads}-{actors}"
    encode(settings(place, output, decode_threads=threads, actors=actors))
    assert contents(place / output) == whole
