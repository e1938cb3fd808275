"""What was asked for against what a model can do."""

from typing import Any

import pytest

from ray_dit.config import DiffusionConfig, DiTConfig, ModelConfig, SamplerConfig
from ray_dit.core import settle
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.samplers import make_table
from ray_dit.core.settle import check_scales, is_guidable, settle_sampler
from ray_dit.errors import UserError

SHAPE = DiTConfig(input_size=8, hidden_size=8, depth=1, num_heads=1, num_classes=2)
OWN = SamplerConfig(name="ddim", num_inference_steps=7, guidance_scale=3.0, eta=0.5)
MODEL = ModelConfig(model=SHAPE, sampler=OWN)
UNDROPPED = ModelConfig(model=SHAPE.model_copy(update={"class_dropout_prob": 0.0}), sampler=OWN)
UNLABELLED = ModelConfig(model=SHAPE.model_copy(update={"num_classes": 0}), sampler=OWN)


def test_what_was_asked_for_stands_over_the_models_own() -> None:
    assert settle_sampler(SamplerConfig(), MODEL, where="m") == OWN
    asked = SamplerConfig(num_inference_steps=10)  # the class's default, but asked for
    assert settle_sampler(asked, MODEL, where="m") == OWN.model_copy(update={"num_inference_steps": 10})
    base = SamplerConfig(name="ddpm")
    assert settle_sampler(asked, MODEL, where="m", base=base) == base


@pytest.mark.parametrize("model", [UNDROPPED, UNLABELLED])
def test_a_model_without_a_null_class_is_not_guided_and_refuses_to_be(model: ModelConfig) -> None:
    assert is_guidable(MODEL)
    assert not is_guidable(model)
    unguided = OWN.model_copy(update={"guidance_scale": 1.0})
    assert settle_sampler(SamplerConfig(), model, where="m") == unguided
    assert settle_sampler(SamplerConfig(guidance_scale=1.0), model, where="m") == unguided
    with pytest.raises(UserError, match="^m was trained .* can't be guided: leave --g out, or at 1"):
        settle_sampler(SamplerConfig(guidance_scale=2.0), model, where="m", scale_setting="--g")


def test_what_the_schedule_or_the_network_lacks_is_refused() -> None:
    short = MODEL.model_copy(update={"diffusion": DiffusionConfig(num_train_timesteps=5)})
    with pytest.raises(UserError, match="^m can't be sampled with these settings: 7 steps of 5 time steps"):
        settle_sampler(SamplerConfig(), short, where="m")
    fixed = MODEL.model_copy(update={"model": SHAPE.model_copy(update={"learn_sigma": False})})
    with pytest.raises(UserError, match="needs a model with learn_sigma"):
        settle_sampler(SamplerConfig(name="ddpm", variance="learned"), fixed, where="m")


@pytest.mark.parametrize(
    "late",
    [
        {"timesteps": (0.0,)},
        {"timesteps": (20.0, 5.0)},
        {"timesteps": (200.5,)},
        {"name": "ddpm", "timesteps": (150.0, 0.0)},
    ],
)
def test_a_sampler_that_would_give_the_noise_back_is_refused(late: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="where images are hardly noisy any more.*begin near 999"):
        settle_sampler(SamplerConfig(**late), MODEL, where="m")


@pytest.mark.parametrize("spacing", ["auto", "uniform", "respaced", "leading", "trailing", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 250, 1000])
def test_every_spacing_begins_at_the_noise_or_is_refused(spacing: Any, steps: int) -> None:
    asked = SamplerConfig(spacing=spacing, num_inference_steps=steps)
    if spacing == "leading" and steps == 1:
        with pytest.raises(UserError, match="'leading' visits time 0 alone in 1 step"):
            settle_sampler(asked, MODEL, where="m")
        return
    table = make_table(
        settle_sampler(asked, MODEL, where="m"), linear_schedule(MODEL.diffusion), learn_sigma=True
    )
    assert table.timesteps[0] >= 499


def test_a_schedule_that_never_gets_noisy_may_begin_anywhere() -> None:
    short = MODEL.model_copy(update={"diffusion": DiffusionConfig(num_train_timesteps=5)})
    assert settle_sampler(SamplerConfig(timesteps=(2.0,)), short, where="m").timesteps == (2.0,)


def test_scales_are_held_against_the_model() -> None:
    check_scales([1.0, 4.0], MODEL, where="m", setting="--scales")
    check_scales([1.0], UNDROPPED, where="m", setting="--scales")
    with pytest.raises(UserError, match="^m was trained .* can't be guided: leave --scales out, or at 1"):
        check_scales([1.0, 1.5], UNDROPPED, where="m", setting="--scales")


def test_settings_that_do_not_fit_together_are_refused() -> None:
    both = SamplerConfig(timesteps=(5.0, 1.0), num_inference_steps=7)
    with pytest.raises(UserError, match="do not fit together: timesteps is a list of its own"):
        settle_sampler(both, MODEL, where="m")
    two = MODEL.model_copy(update={"sampler": SamplerConfig(name="dpmpp")})
    with pytest.raises(UserError, match="do not fit together: dpmpp has order 1 or 2"):
        settle_sampler(SamplerConfig(order=3), two, where="m")


def test_a_scale_a_client_sends_does_not_make_a_table_of_its_own() -> None:
    settle._check_table.cache_clear()
    for scale in (1.5, 2.5, 3.5):
        settle_sampler(SamplerConfig(guidance_scale=scale), MODEL, where="m")
    assert settle._check_table.cache_info().misses == 1
