"""encode on a real Ray: the shards hold what the VAE says of the images; bad ones are set aside."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.core.latents import to_float
from ray_dit.core.order import is_heldout
from ray_dit.errors import UserError
from ray_dit.folders.duplicates import copies_of_heldout
from ray_dit.formats.latents import LatentShard, read_latent_shard
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.results import Manifest
from ray_dit.results import RESULTS, LatentsResult
from ray_dit.stages.encode import encode
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE
from tests.support.tiny import (
    SIZE,
    contents,
    flip_bit,
    kinds_of_machines,
    times,
    write_pictures,
    write_vae,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

HELDOUT, BATCH = 0.3, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encode")
    write_pictures(folder / "images", {"left": 11, "right": 9})
    write_vae(folder / "vae")
    return folder


def settings(place: Path, output: str, **fields: Any) -> EncodeConfig:
    images = {"uri": str(place / fields.pop("images", "images")), "size": SIZE, "heldout": HELDOUT}
    images |= {"max_bad": fields.pop("max_bad", 0.01)}
    config = {"shard_size": 8, "batch_size": BATCH, "vae": str(place / "vae"), "output": str(place / output)}
    return EncodeConfig(images=ImagesConfig(**images), **(config | fields))


def shards(folder: Path) -> list[LatentShard]:
    return [read_latent_shard(path.read_bytes()) for path in sorted((folder / "latents").glob("*.parquet"))]


def expected(vae: VAE, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Moments of a shard's pictures, in batches as the stage makes them."""
    padded = np.concatenate([pictures, np.zeros((-len(pictures) % BATCH, SIZE, SIZE, 3), np.uint8)])
    batches = [to_float(batch) for batch in torch.from_numpy(padded).split(BATCH)]
    return torch.cat([vae.encode(batch) for batch in batches])[: len(pictures)].numpy().astype(np.float16)


@pytest.fixture(scope="module")
def encoded(place: Path, one_ray: Any) -> Manifest[LatentsResult]:
    return encode(settings(place, "latents"))


def test_the_moments_are_the_vaes(place: Path, encoded: Manifest[LatentsResult]) -> None:
    vae = VAE.load(str(place / "vae"))
    found = shards(place / "latents")
    assert [len(shard.keys) for shard in found] == [8, 8, 4]
    for shard in found:
        pictures = np.stack([np.asarray(Image.open(place / "images" / key)) for key in shard.keys])
        assert np.array_equal(shard.moments, expected(vae, pictures))
        assert np.array_equal(shard.moments_mirror, expected(vae, np.ascontiguousarray(pictures[:, :, ::-1])))
        assert not np.array_equal(shard.moments, shard.moments_mirror)


def test_keys_labels_and_the_split(place: Path, encoded: Manifest[LatentsResult]) -> None:
    found = shards(place / "latents")
    keys = [key for shard in found for key in shard.keys]
    labels = [encoded.facts.classes[label] for shard in found for label in shard.labels]
    heldout = [bool(value) for shard in found for value in shard.heldout]
    assert keys == sorted(str(p.relative_to(place / "images")) for p in (place / "images").rglob("*.png"))
    assert labels == [key.split("/")[0] for key in keys]
    assert encoded.facts.classes == ("left", "right")
    assert heldout == [is_heldout(key, HELDOUT) for key in keys]
    assert 0 < sum(heldout) < 20
    assert (encoded.facts.rows, encoded.facts.train_rows) == (20, 20 - sum(heldout))
    assert encoded.facts.latent_shape == (4, 8, 8)
    assert encoded.facts.image_size == SIZE


def test_the_statistics_are_those_of_the_training_rows(place: Path, encoded: Manifest[LatentsResult]) -> None:
    found = shards(place / "latents")
    moments = np.concatenate([shard.moments[~shard.heldout] for shard in found]).astype(np.float64)
    mean, log_variance = moments[:, :4], moments[:, 4:]
    second = (mean**2 + np.exp(log_variance)).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(encoded.facts.mean, mean.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(encoded.facts.std, np.sqrt(second - mean.mean(axis=(0, 2, 3)) ** 2), rtol=1e-9)


def test_the_folder_holds_its_vae(place: Path, encoded: Manifest[LatentsResult]) -> None:
    assert VAE.load(str(place / "latents")).files() == VAE.load(str(place / "vae")).files()


def test_running_it_again_writes_nothing(place: Path, encoded: Manifest[LatentsResult]) -> None:
    before = times(place / "latents")
    assert encode(settings(place, "latents")) == encoded
    assert times(place / "latents") == before


def test_without_mirrors_and_with_one_actor(place: Path, encoded: Manifest[LatentsResult]) -> None:
    encode(settings(place, "plain", mirror=False, actors=1))
    for plain, both in zip(shards(place / "plain"), shards(place / "latents"), strict=True):
        assert plain.moments_mirror is None
        assert np.array_equal(plain.moments, both.moments)


def test_repair_restores_the_very_bytes(place: Path, encoded: Manifest[LatentsResult]) -> None:
    folder = place / "latents"
    before = contents(folder)
    first, second, _ = sorted((folder / "latents").glob("*.parquet"))
    flip_bit(first)
    second.unlink()
    encode(settings(place, "latents"))  # the shards of a finished job are not read again
    assert contents(folder) != before
    for key in ("plan.parquet", "_markers/00001.json", "_plain/plan.parquet.json", "manifest/objects.jsonl"):
        flip_bit(folder / key)
    assert encode(settings(place, "latents", repair=True)) == encoded
    assert contents(folder) == before


def test_a_rerun_puts_back_what_is_no_shard(place: Path, encoded: Manifest[LatentsResult]) -> None:
    folder = place / "latents"
    before = contents(folder)
    flip_bit(folder / "plan.parquet")
    flip_bit(folder / "vae/diffusion_pytorch_model.safetensors")
    (folder / "quarantine.parquet").unlink()
    assert encode(settings(place, "latents")) == encoded
    for key in ("manifest.json", "manifest/plain.jsonl"):
        flip_bit(folder / key)
        assert encode(settings(place, "latents")) == encoded
    assert contents(folder) == before


def test_a_flipped_shard_that_is_made_again_rings(place: Path, encoded: Manifest[LatentsResult]) -> None:
    assert kinds_of_machines(place / "latents") == 1
    shutil.copytree(place / "latents", place / "flipped")
    shard, marker = place / "flipped/latents/00001.parquet", place / "flipped/_markers/00001.json"
    flip_bit(shard)
    flipped = shard.read_bytes()
    marker.unlink()
    (place / "flipped/manifest.json").unlink()
    with pytest.raises(UserError, match="latents/00001.parquet holds other bytes than this job wrote there"):
        encode(settings(place, "flipped", actors=1))
    assert shard.read_bytes() == flipped
    assert not marker.exists()
    shard.unlink()
    flip_bit(place / "flipped/_markers/00002.json")  # found as the job is finished, and made again
    assert encode(settings(place, "flipped", actors=1)) == encoded
    assert contents(place / "flipped") == contents(place / "latents")


def test_exact_copies_are_counted_listed_and_held_back(place: Path) -> None:
    """One in its own class, one of a held-out image in the other class, and another by an extension."""
    images = place / "copied"
    shutil.copytree(place / "images", images)
    keys = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    held = next(key for key in keys if is_heldout(key, HELDOUT))
    seen = next(key for key in keys if not is_heldout(key, HELDOUT) and key.startswith("left"))
    names = (f"right/copy {number}.png" for number in range(100))
    copy, later = [name for name in names if not is_heldout(name, HELDOUT)][:2]
    shutil.copy(images / held, images / copy)
    shutil.copy(images / seen, images / seen.replace(".png", " again.png"))
    manifest = encode(settings(place, "with-copies", images="copied"))
    found = manifest.facts.duplicates
    assert found is not None
    across = int(held.startswith("left"))
    assert (found.within_classes, found.across_classes, found.heldout) == (2 - across, across, 1)
    folder = place / "with-copies"
    listed = pq.read_table(folder / "duplicates.parquet").to_pylist()
    assert {row["key"] for row in listed if row["counts_as_heldout"]} == {held, copy}
    training = [
        key for shard in shards(folder) for key in np.array(shard.keys)[~shard.heldout] if key != copy
    ]
    assert manifest.facts.train_rows == len(training)
    moments: dict[str, NDArray[np.float16]] = {}
    for shard in shards(folder):
        moments |= zip(shard.keys, shard.moments, strict=True)
    mean = np.stack([moments[key] for key in training]).astype(np.float64)[:, :4].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(manifest.facts.mean, mean, rtol=1e-9)
    before = contents(folder)
    flip_bit(folder / "duplicates.parquet")
    assert encode(settings(place, "with-copies", images="copied")) == manifest
    assert contents(folder) == before
    assert list(verify(open_store(str(folder)), results=RESULTS)) == []
    shutil.copy(images / held, images / later)
    extended = encode(settings(place, "with-copies", images="copied", extend=True))
    assert extended.facts.duplicates is not None
    assert extended.facts.duplicates.heldout == 2
    assert extended.facts.train_rows == manifest.facts.train_rows
    assert copies_of_heldout(open_store(str(folder)), extended.generation) == {held, copy, later}


def test_a_damaged_vae_is_not_used(place: Path) -> None:
    shutil.copytree(place / "vae", place / "damaged-vae")
    flip_bit(place / "damaged-vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="model.safetensors does not hold what was written there"):
        encode(settings(place, "of-damaged", vae=str(place / "damaged-vae")))


BAD = {"left/05.png": b"no picture", "right/03.png": None}
"""None: cut in the middle."""


@pytest.fixture
def some_bad(place: Path) -> Path:
    folder = place / "some-bad"
    if not folder.exists():
        write_pictures(folder, {"left": 11, "right": 9})
        for key, data in BAD.items():
            whole = (folder / key).read_bytes()
            (folder / key).write_bytes(whole[: len(whole) // 2] if data is None else data)
    return folder


def test_bad_pictures_are_set_aside_and_listed(
    place: Path, some_bad: Path, encoded: Manifest[LatentsResult]
) -> None:
    manifest = encode(settings(place, "without-bad", images=some_bad.name, max_bad=0.1, actors=1))
    found = shards(place / "without-bad")
    keys = [key for shard in found for key in shard.keys]
    assert (manifest.facts.rows, manifest.facts.bad, len(keys)) == (18, 2, 18)
    assert not set(keys) & BAD.keys()
    # as docs/images.md has it
    listed = pq.read_table(place / "without-bad/quarantine.parquet").to_pylist()
    first, second = listed
    assert [row["key"] for row in listed] == [row["object"] for row in listed] == list(BAD)
    assert [(row["label"], row["class"], row["code"]) for row in listed] == [
        (0, "left", "unreadable"),
        (1, "right", "unreadable"),
    ]
    for row in listed:
        data = (some_bad / row["key"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert first["reason"].startswith("not an image in one of the formats PNG")
    assert (first["format"], first["mode"], first["width"], first["height"]) == (None,) * 4
    assert (second["format"], second["mode"], second["width"], second["height"]) == ("PNG", "RGB", SIZE, SIZE)
    whole = {
        key: row
        for shard in shards(place / "latents")
        for key, row in zip(shard.keys, shard.moments, strict=True)
    }
    for shard in found:  # the others are what they were, whatever batch they are in now
        for key, row in zip(shard.keys, shard.moments, strict=True):
            np.testing.assert_allclose(row.astype(float), whole[key].astype(float), atol=2e-3)


def test_too_many_bad_pictures_are_refused_by_name(place: Path, some_bad: Path) -> None:
    with pytest.raises(UserError, match="2 of 20 images .*max_bad = 0.05.* 'left/05.png'.*repair or remove"):
        encode(settings(place, "refused", images=some_bad.name, max_bad=0.05, actors=1))
    assert not (place / "refused/manifest.json").exists()
