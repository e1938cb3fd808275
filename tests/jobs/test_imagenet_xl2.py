"""The recipe for the published model: the paper's settings, and a verdict on the figure that was measured."""

import os
from pathlib import Path

import pytest

from jobs.imagenet_xl2 import _options, expectation, generation, main, verdict
from ray_dit.config import SamplerConfig


def test_settings_are_those_of_the_published_figure() -> None:
    given = ["--weights", "w.pt", "--folder", "out/", "--actors", "8", "--precision", "bfloat16"]
    config = generation(_options(given), "out/model")
    sampler = config.sampler.over(SamplerConfig())
    assert (sampler.name, sampler.num_inference_steps, sampler.guidance_scale) == ("ddpm", 250, 1.5)
    assert (sampler.variance, sampler.guidance_interval, sampler.timesteps) == ("learned", None, None)
    assert (config.num_images, config.classes, config.use_gpu, config.actors) == (50_000, None, True, 8)
    assert (config.model, config.output) == (os.path.abspath("out/model"), os.path.abspath("out/dataset"))
    assert config.precision == "bfloat16"


def test_the_pool_may_grow_with_the_cluster() -> None:
    assert generation(_options(["--weights", "w.pt", "--actors", "2..64"]), "out/model").actors == "2..64"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--actors", "8..2"], "--actors: 8..2 is no range: its end is below its beginning"),
        (["--num-images", "0"], "--num-images: "),
    ],
)
def test_wrong_numbers_are_one_sentence_before_the_import(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.fid.meter", lambda options: None)
    folder = tmp_path / "out"
    with pytest.raises(SystemExit, match=f"imagenet_xl2: error: {said}"):
        main(["--weights", "w.pt", "--folder", str(folder), *given])
    assert not folder.exists()


def test_the_figure_is_labelled_as_published_and_not_as_ours() -> None:
    assert "published FID, random labels: 2.27" in expectation(50_000)
    assert expectation(50_000).endswith("expect 2.17 ± 0.1")
    assert "not with 1000 images" in expectation(1000)


@pytest.mark.parametrize(("found", "where"), [(2.17, "within"), (2.06, "outside"), (2.28, "outside")])
def test_the_verdict_is_on_as_many_pictures_as_published(found: float, where: str) -> None:
    assert verdict(found, 50_000).endswith(f"{found:.2f}, {where} 2.07 to 2.27")
    assert "within" not in verdict(found, 1000)
    assert "outside" not in verdict(found, 1000)


def test_what_the_last_step_lacks_is_told_first(tmp_path: Path) -> None:
    given = ["--weights", "w.pt", "--folder", str(tmp_path / "out"), "--reference", str(tmp_path / "no.npz")]
    with pytest.raises(SystemExit, match="imagenet_xl2: error: .*no.npz holds no reference statistics"):
        main(given)
    assert not (tmp_path / "out").exists()
