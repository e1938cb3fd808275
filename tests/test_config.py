"""Settings: what each decides, and what is kept, replaced or refused where one stands over another."""

import pickle

import pytest

from ray_dit.cli import COMMANDS
from ray_dit.config import (
    Config,
    Content,
    ContentConfig,
    DiffusionConfig,
    DiTConfig,
    DiTSizeConfig,
    GenerateConfig,
    ImagesConfig,
    ImportConfig,
    OptimizerConfig,
    Placement,
    SamplerConfig,
    TrainConfig,
    TrainVaeConfig,
    content_defaults,
)
from ray_dit.config.base import over_defaults, placement_names, undecided

LIST = SamplerConfig(timesteps=(900.0, 500.0, 100.0), guidance_scale=3.0, guidance_interval=(100, 600))
LATENTS = {"input_size": 8, "in_channels": 4, "num_classes": 10}


JOBS = {
    name: command.config
    for name, command in COMMANDS.items()
    if "accept_fingerprint" in command.config.model_fields
}
"""The settings that end in a fingerprint."""


@pytest.mark.parametrize("name", JOBS)
def test_every_setting_decides_bytes_or_is_placement(name: str) -> None:
    assert list(undecided(JOBS[name])) == []


class Half(Config):
    size: Content[int] = 1
    where: Placement[str] = ""
    nobody_thought: int = 0


class Stage(Config):
    half: Half = Half()
    whole: OptimizerConfig = OptimizerConfig()


def test_a_setting_nobody_decided_is_found() -> None:
    assert set(JOBS) == {"train-vae", "encode", "train", "generate", "evaluate", "import-checkpoint"}
    assert list(undecided(Stage)) == ["half.nobody_thought"]
    assert list(placement_names(Stage)) == ["half.where"]
    assert issubclass(OptimizerConfig, ContentConfig)


def test_content_leaves_placement_out_everywhere() -> None:
    assert Stage(half={"where": "here"}).content()["half"] == {"size": 1, "nobody_thought": 0}
    settings = TrainVaeConfig(images=ImagesConfig(uri="a"), output="b", address="auto", tensorboard="c")
    other = TrainVaeConfig(images=ImagesConfig(uri="x", max_bad=0.5), output="y", num_cpus=9)
    assert settings.content() == other.content()
    assert settings.content() != other.model_copy(update={"threads": 2}).content()


def test_content_of_what_stands_over_others_holds_what_was_asked_for() -> None:
    nothing = ImportConfig(source="s", output="o")
    asked = nothing.model_copy(update={"diffusion": DiffusionConfig(beta_end=0.02)})
    assert nothing.content()["diffusion"] == dict.fromkeys(DiffusionConfig.model_fields)
    assert asked.content()["diffusion"]["beta_end"] == 0.02
    assert nothing.content() == {"scale": None} | content_defaults(ImportConfig)


def test_what_was_asked_for_survives_the_way_to_an_actor() -> None:
    settings = GenerateConfig(model="m", output="o", num_images=1, sampler={"eta": 0.0})
    copied = pickle.loads(pickle.dumps(settings))
    assert copied.sampler.model_fields_set == {"eta"}
    assert copied.content() == settings.content()


def test_a_given_setting_keeps_what_the_section_has_by_default_in_that_stage() -> None:
    given = {"images": {"uri": "a"}, "output": "b", "optimizer": {"grad_clip": 1.0}}
    settings = TrainVaeConfig.model_validate(over_defaults(TrainVaeConfig, given))
    assert settings.optimizer == OptimizerConfig(learning_rate=2e-3, schedule="cosine", grad_clip=1.0)
    assert over_defaults(TrainConfig, {"sampler": {"eta": 1.0}}) == {"sampler": {"eta": 1.0}}


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


@pytest.mark.parametrize(("fields", "steps"), [({"num_inference_steps": 7}, 7), ({"spacing": "trailing"}, 3)])
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
