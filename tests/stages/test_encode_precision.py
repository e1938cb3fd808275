"""The precision the VAE encodes in: other bytes, how far from float32, and folders of before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_dit.config import EncodeConfig, ImagesConfig, content_defaults
from ray_dit.core.latents import to_float
from ray_dit.errors import UserError
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.reading import load_images
from ray_dit.formats.latents import read_latent_shard
from ray_dit.results import LatentShardFacts
from ray_dit.runtime.shard_maker import make_shard
from ray_dit.stages.encode import Encoder
from ray_dit.stages.fingerprint import comparison, parts
from ray_dit.vae import VAE
from tests.support.results import latents_result
from tests.support.tiny import SIZE, write_pictures, write_vae

BATCH = 3
TOLERANCE = {"float32": 0.0, "bfloat16": 0.05, "float16": 0.005}
"""Of relative errors: a few times 2^-8 and 2^-11."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    write_pictures(folder / "images", {"left": 5, "right": 4})
    write_vae(folder / "vae")
    return folder


def settings(place: Path, **fields: Any) -> EncodeConfig:
    images = ImagesConfig(uri=str(place / "images"), size=SIZE)
    common = {"vae": str(place / "vae"), "output": "o", "shard_size": 5, "batch_size": BATCH}
    return EncodeConfig(images=images, **common | fields)


def made(place: Path, plan: ImagePlan, precision: str, shard: int) -> tuple[np.ndarray, LatentShardFacts]:
    encoder = Encoder(settings(place, precision=precision), plan)
    found = make_shard(encoder, shard)
    again = make_shard(encoder, shard)
    assert found == again
    facts = LatentShardFacts.model_validate(found.facts.to_json())
    return read_latent_shard(found.data).moments.astype(np.float64), facts


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_error_is_that_of_the_first_batch(place: Path, precision: str) -> None:
    plan = plan_images(settings(place).images)
    found, facts = made(place, plan, precision, 0)
    exact, of_exact = made(place, plan, "float32", 0)
    assert of_exact.precision_error is None
    assert "precision_error" not in of_exact.to_json()
    error = facts.precision_error
    assert error is not None
    vae = Encoder(settings(place), plan)._vae  # pyright: ignore[reportPrivateUsage]
    images = to_float(torch.from_numpy(load_images(plan, range(BATCH))[0]))
    with torch.inference_mode():
        reference = vae.encode(images).double().numpy()
        low = vae.to_precision(precision).encode(images).double().numpy()
    difference = np.abs(low - reference)
    assert error.images == BATCH
    np.testing.assert_allclose([error.max, error.mean], [difference.max(), difference.mean()])
    relative = np.sqrt((difference**2).mean() / (reference**2).mean())
    np.testing.assert_allclose(error.relative, relative)
    assert 0 < error.mean <= error.max
    assert 0 < error.relative < TOLERANCE[precision]
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, atol=10 * error.max)
    assert made(place, plan, precision, 1)[1].precision_error is None, "the first shard is the sample"


def test_another_is_another_job_and_a_folder_of_before_has_float32(place: Path) -> None:
    before = parts(settings(place), "encode", {})
    del before["config"]["precision"]
    other = parts(settings(place, precision="bfloat16"), "encode", {})
    assert other["config"] == before["config"] | {"precision": "bfloat16"}
    compared = comparison(EncodeConfig, "encode")
    assert not compared.same(before, other)
    assert compared.same(before, parts(settings(place), "encode", {}))
    assert content_defaults(EncodeConfig)["precision"] == "float32"


def test_the_manifest_holds_that_of_the_first_shard(place: Path) -> None:
    plan = plan_images(settings(place).images)
    facts = [made(place, plan, "float16", shard)[1].to_json() for shard in (0, 1)]
    expected = latents_result(latent_shape=(4, 8, 8)).expected({}, facts)
    assert expected["precision_error"] == facts[0]["precision_error"]
    assert "precision_error" not in latents_result(latent_shape=(4, 8, 8)).expected({}, facts[1:])


@pytest.mark.parametrize(("precision", "fits"), [("float32", True), ("bfloat16", True), ("float16", False)])
def test_what_leaves_the_range_is_refused_and_not_stored(place: Path, precision: str, fits: bool) -> None:
    vae = VAE.load(str(place / "vae"))
    vae.module.encoder.conv_in.weight.data *= 1e7  # a norm follows: only what is computed in float16 minds
    encoder = Encoder(settings(place, precision=precision), plan_images(settings(place).images), vae=vae)
    if fits:
        assert np.isfinite(read_latent_shard(make_shard(encoder, 0).data).moments).all()
    else:
        with pytest.raises(UserError, match="computed in float16, are beyond float16: take --prec"):
            make_shard(encoder, 0)
