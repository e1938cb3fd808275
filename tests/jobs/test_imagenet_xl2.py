"""The recipe for the published model: the paper's settings, and no claim that nothing measured."""

import os

from jobs.imagenet_xl2 import _options, comparison, generation
from ray_dit.config import SamplerConfig


def test_settings_are_those_of_the_published_figure() -> None:
    config = generation(_options(["--weights", "w.pt", "--folder", "out/", "--actors", "8"]), "out/model")
    sampler = config.sampler.over(SamplerConfig())
    assert (sampler.name, sampler.num_inference_steps, sampler.guidance_scale) == ("ddpm", 250, 1.5)
    assert (sampler.variance, sampler.guidance_interval, sampler.timesteps) == ("learned", None, None)
    assert (config.num_images, config.classes, config.use_gpu, config.actors) == (50_000, None, True, 8)
    assert (config.model, config.output) == (os.path.abspath("out/model"), os.path.abspath("out/dataset"))


def test_the_figure_is_labelled_as_published_and_not_as_ours() -> None:
    text = comparison()
    assert "published FID, random labels: 2.27" in text
    assert "expect 2.17 ± 0.1" in text and "not computed" in text
