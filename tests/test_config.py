"""Settings that stand over others: what is kept, what is replaced, and what does not go together."""

import pytest

from ray_dit.config import (
    DiffusionConfig,
    DiTConfig,
    DiTSizeConfig,
    SamplerConfig,
)

LIST = SamplerConfig(timesteps=(900.0, 500.0, 100.0), guidance_scale=3.0, guidance_interval=(100, 600))
LATENTS = {"input_size": 8, "in_channels": 4, "num_classes": 10}


def test_nothing_given_changes_nothing() -> None:
    assert SamplerConfig().over(LIST) == LIST
    assert SamplerConfig(guidance_scale=2.0).over(LIST).timesteps == LIST.timesteps
    assert DiffusionConfig().over(DiffusionConfig(beta_end=0.03)) == DiffusionConfig(beta_end=0.03)


def test_another_sampler_keeps_steps_and_guidance_and_nothing_of_the_one_before() -> None:
    own = SamplerConfig(name="ddim", eta=1.0, spacing="trailing", num_inference_steps=7, guidance_scale=3.0)
    changed = SamplerConfig(name="unipc", order=3).over(own)
    assert changed == SamplerConfig(name="unipc", order=3, num_inference_steps=7, guidance_scale=3.0)
    assert SamplerConfig(name="ddim").over(own) == own
    listed = SamplerConfig(name="ddim").over(LIST)
    assert (listed.timesteps, listed.num_steps, listed.guidance_interval) == (None, 3, (100, 600))


@pytest.mark.parametrize("fields, steps", [({"num_inference_steps": 7}, 7), ({"spacing": "trailing"}, 3)])
def test_steps_and_spacing_take_the_place_of_a_list(fields: dict[str, object], steps: int) -> None:
    over = SamplerConfig.model_validate(fields).over(LIST)
    assert (over.timesteps, over.num_steps) == (None, steps)


@pytest.mark.parametrize("fields", [{"num_inference_steps": 7}, {"spacing": "trailing"}])
def test_a_list_goes_with_neither(fields: dict[str, object]) -> None:
    both = SamplerConfig.model_validate({"timesteps": (5.0, 1.0), **fields})
    with pytest.raises(ValueError, match="leave num_inference_steps and spacing out"):
        both.over(SamplerConfig())


def test_a_schedule_is_overridden_field_by_field() -> None:
    base = DiffusionConfig(num_train_timesteps=500, beta_end=0.03)
    assert DiffusionConfig(beta_end=0.02).over(base) == DiffusionConfig(num_train_timesteps=500)
    assert DiffusionConfig(num_train_timesteps=1000).over(base) == DiffusionConfig(beta_end=0.03)


def test_a_size_is_given_by_preset_by_field_or_by_the_model_to_start_from() -> None:
    small = DiTConfig.preset("DiT-S/2", **LATENTS)
    assert DiTSizeConfig().resolve(**LATENTS) == small
    assert DiTSizeConfig(depth=3).resolve(**LATENTS) == small.model_copy(update={"depth": 3})
    large = DiTSizeConfig(preset="DiT-XL/4", depth=3, learn_sigma=False).resolve(**LATENTS)
    assert large == DiTConfig.preset("DiT-XL/4", **LATENTS, learn_sigma=False).model_copy(update={"depth": 3})
    base = DiTConfig(hidden_size=32, num_heads=2, depth=5, mlp_ratio=2.0, learn_sigma=False, input_size=16)
    assert DiTSizeConfig().resolve(**LATENTS, base=base) == base.model_copy(update=LATENTS)
    assert DiTSizeConfig(preset="DiT-S/2").resolve(**LATENTS, base=base).hidden_size == 384
