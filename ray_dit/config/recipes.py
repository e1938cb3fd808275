"""Settings of published trainings, by name: what ``--recipe`` sets under the settings that are given.

A new recipe is an entry here; docs/training.md says what figures to expect of it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import AfterValidator, Field

from ray_dit.config.base import Config

Settings = Mapping[str, Any]

RECIPES: Mapping[str, Settings] = {
    # Peebles & Xie 2022, section 4, and the training script they published. The mirror images that it trains
    # on are encode's, on by default.
    "dit-paper": {
        "steps": 400_000,
        "batch_size": 256,
        "precision": "float32",
        "tf32": True,
        "ema_decay": 0.9999,
        "min_snr_gamma": None,
        "label_init_std": 0.02,
        "model": {"class_dropout_prob": 0.1},
        "optimizer": {
            "learning_rate": 1e-4,
            "schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
            "grad_clip": None,
        },
    },
}
"""Settings of train, sections in sections."""


def known_recipe(name: str | None) -> str | None:
    """The name; ValueError, with those there are, where it is none of them."""
    if name is not None and name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}: take one of {', '.join(sorted(RECIPES))}")
    return name


_HELP = f"A published training's settings, under those that are given: {', '.join(RECIPES)}."
Recipe = Annotated[str | None, AfterValidator(known_recipe), Field(description=_HELP)]


def under_recipe(given: Any, recipes: Mapping[str, Settings] = RECIPES) -> Any:
    """The settings given, nested, over those of the recipe that they name."""
    if not isinstance(given, Mapping):
        return given
    settings = cast("Settings", given)
    name = settings.get("recipe")
    return _over(recipes[name], settings) if isinstance(name, str) and name in recipes else settings


def _over(base: Settings, given: Settings) -> dict[str, Any]:
    merged = dict(base) | dict(given)
    for name in base.keys() & given.keys():
        inner = given[name]
        inner = inner.model_dump(exclude_unset=True) if isinstance(inner, Config) else inner
        if isinstance(base[name], Mapping) and isinstance(inner, Mapping):
            merged[name] = _over(base[name], cast("Settings", inner))
    return merged
