"""Recipes: published settings under what was asked for."""

from typing import Any

import pytest

from ray_dit.cli.main import parse
from ray_dit.config import OptimizerConfig, TrainConfig
from ray_dit.config.recipes import RECIPES, under_recipe
from ray_dit.errors import UserError

PLACES = ["--latents", "latents", "--output", "run"]


def asked(*words: str) -> TrainConfig:
    return parse("train", TrainConfig, [*PLACES, *words])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_training(name: str) -> None:
    config = asked("--recipe", name)
    assert config.recipe == name
    given: dict[str, Any] = config.model_dump()
    for setting, value in RECIPES[name].items():
        inner = value if isinstance(value, dict) else {}
        assert (
            all(given[setting][key] == of for key, of in inner.items()) if inner else given[setting] == value
        )


def test_the_papers_is_the_papers() -> None:
    """Peebles & Xie 2022, section 4."""
    config = asked("--recipe", "dit-paper")
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.9, 0.999), 0.0)
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.grad_clip) == ("constant", 0, None)
    assert (config.batch_size, config.ema_decay, config.steps) == (256, 0.9999, 400_000)
    assert config.model.class_dropout_prob == 0.1
    assert (config.precision, config.compile) == ("float32", False)


def test_what_is_asked_for_wins_and_the_rest_stays() -> None:
    words = ("--recipe", "dit-paper", "--optimizer.learning-rate", "3e-4", "--steps", "7000000")
    config = asked(*words, "--model.preset", "DiT-B/2", "--no-tf32")
    assert config.optimizer == OptimizerConfig(learning_rate=3e-4)
    assert (config.steps, config.batch_size, config.tf32) == (7_000_000, 256, False)
    assert config.model.preset == "DiT-B/2"
    assert config.model.class_dropout_prob == 0.1


def test_settings_made_in_python_win_likewise() -> None:
    optimizer = OptimizerConfig(weight_decay=0.1)
    config = TrainConfig(latents="l", output="o", recipe="dit-paper", optimizer=optimizer, batch_size=8)
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.learning_rate == 1e-4
    assert (config.batch_size, config.tf32) == (8, True)


def test_a_recipe_is_nothing_but_the_settings_it_names() -> None:
    """The same job, whichever way it is asked for."""
    spelled = asked("--tf32", "--model.class-dropout-prob", "0.1")
    assert asked("--recipe", "dit-paper").content() == spelled.content()
    assert "recipe" not in spelled.content()
    assert not TrainConfig(latents="l", output="o").tf32


@pytest.mark.parametrize("name", ["dit", "", "DIT-PAPER"])
def test_an_unknown_one_is_answered_with_the_list(name: str) -> None:
    with pytest.raises(UserError, match=f"--recipe: there is no recipe '{name}': take one of dit-paper"):
        asked("--recipe", name)


def test_sections_are_laid_over_setting_by_setting() -> None:
    """Of a recipe that is nobody's default."""
    recipes = {"odd": {"steps": 3, "optimizer": {"learning_rate": 0.5, "weight_decay": 0.25}}}
    assert under_recipe({"recipe": "odd", "optimizer": {"learning_rate": 1.0}}, recipes) == {
        "recipe": "odd",
        "steps": 3,
        "optimizer": {"learning_rate": 1.0, "weight_decay": 0.25},
    }
    made = under_recipe({"recipe": "odd", "optimizer": OptimizerConfig(weight_decay=0.5)}, recipes)
    assert made["optimizer"] == {"learning_rate": 0.5, "weight_decay": 0.5}
    assert under_recipe({"recipe": "even", "steps": 1}, recipes) == {"recipe": "even", "steps": 1}
    assert under_recipe({"steps": 1}, recipes) == {"steps": 1}
