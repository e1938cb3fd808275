"""encode's threads, actors and reservations on a real Ray: when and where, never what."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.core.media import decode_image
from ray_dit.core.to_rgb import UnreadableImage
from ray_dit.errors import UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.ledger.results import Marker
from ray_dit.ledger.stored_json import canonical
from ray_dit.results import RESULTS, LatentShardFacts, LatentsResult
from ray_dit.stages.encode import encode
from ray_dit.storage.open import open_store
from tests.support.killed import unfinish
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


def test_conversions_are_counted_by_shard_and_in_all(place: Path, whole: dict[str, str]) -> None:
    found: Counter[str] = Counter()
    converted = bad = 0
    for path in (place / "images").rglob("*.png"):
        try:
            names = decode_image(path.read_bytes()).conversions
        except UnreadableImage:
            bad += 1
            continue
        found.update(names)
        converted += bool(names)
    store = open_store(str(place / "latents"))
    manifest = read_manifest(store, LatentsResult)
    assert manifest.facts.conversions == found
    assert {*found} == {"grey", "palette"}
    assert (manifest.facts.converted, manifest.facts.bad) == (converted, bad)
    shards = [marker.facts for marker in manifest_objects(store, manifest, LatentShardFacts)]
    assert all(shard.adds_up(size) for shard, size in zip(shards, [4, 4, 4, 4, 4, 4, 1], strict=True))
    assert sum(shard.converted for shard in shards) == converted
    assert list(verify(store, results=RESULTS)) == []


def test_a_marker_that_does_not_account_for_each_image_does_not_finish(
    place: Path, whole: dict[str, str]
) -> None:
    shutil.copytree(place / "latents", place / "short")
    unfinish(place / "short")
    job = Job(open_store(str(place / "short")), "encode", "")
    marker = job.marker("00003", LatentShardFacts)
    assert marker is not None
    short = replace_facts(marker, rows=marker.facts.rows - 1, seen=marker.facts.seen - 1)
    (place / "short/_markers/00003.json").write_bytes(canonical(short.to_json()))
    with pytest.raises(
        UserError, match="00003.parquet and its marker do not account for each of its 4 images"
    ):
        encode(settings(place, "short"))
    (place / "short/_markers/00003.json").unlink()
    encode(settings(place, "short"))
    assert contents(place / "short") == whole


def replace_facts(marker: Marker[LatentShardFacts], **fields: int) -> Marker[LatentShardFacts]:
    return marker.model_copy(update={"facts": marker.facts.model_copy(update=fields)})


@pytest.mark.parametrize(("threads", "actors"), [(3, 1), (1, 2), (7, 2)])
def test_threads_and_actors_change_no_byte(
    place: Path, whole: dict[str, str], threads: int, actors: int
) -> None:
    output = f"latents-{threads}-{actors}"
    encode(settings(place, output, decode_threads=threads, actors=actors))
    assert contents(place / output) == whole
