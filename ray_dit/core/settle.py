"""What sampling is asked for against what a model can do.

This is the one place where a sampler's settings are settled.

Knows settings only: no weights, no place, no request. `generate`, the pipeline, the server and `train` all
ask here.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from ray_dit.config import DiffusionConfig, ModelConfig, SamplerConfig
from ray_dit.core.diffusion import linear_schedule
from ray_dit.core.dit import null_label
from ray_dit.core.samplers import check_settings, make_table
from ray_dit.errors import UserError, first_message

MOST_SIGNAL = 0.5
"""Share of the signal's variance (ᾱ) at the first step, at most: pure noise is taken for such an image."""


def is_guidable(model: ModelConfig) -> bool:
    """Whether a guidance scale other than 1 means anything: the model knows the null class."""
    return null_label(model.model) is not None


def evaluations_per_image(model: ModelConfig, sampler: SamplerConfig) -> int:
    """Rows the network sees for one image: one per step, and a twin at each step that is guided."""
    table = make_table(sampler, linear_schedule(model.diffusion), learn_sigma=model.model.learn_sigma)
    twins = sampler.guidance_scale != 1 and is_guidable(model)
    return len(table) + (int(table.guided.sum()) if twins else 0)


def settle_sampler(
    asked: SamplerConfig,
    model: ModelConfig,
    *,
    where: str,
    base: SamplerConfig | None = None,
    scale_setting: str = "guidance_scale",
) -> SamplerConfig:
    """The settings to sample with: what was asked for (`model_fields_set`) over the model's own, checked.

    A model that cannot be guided is sampled with scale 1, and refuses another that is asked for. UserError
    where the settings do not fit together, or ask for more than the model has.

    Args:
        asked: only what was set in it counts.
        model: the model's settings.
        where: what errors call the model.
        base: full settings to stand over instead of the model's own.
        scale_setting: what errors call the guidance scale.
    """
    try:
        sampler = asked.over(base or model.sampler)
        check_settings(sampler)
    except ValueError as error:
        raise UserError(f"these sampler settings do not fit together: {first_message(error)}") from error
    try:
        # Guidance is no part of the table's checks, and whatever scale a client sends must not fill the
        # cache.
        bare = sampler.model_copy(update={"guidance_scale": 1.0})
        # pyright does not see that frozen models of pydantic can be hashed
        _check_table(bare, model.diffusion, model.model.learn_sigma)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise UserError(f"{where} can't be sampled with these settings: {error}") from error
    if is_guidable(model):
        return sampler
    if "guidance_scale" in asked.model_fields_set and asked.guidance_scale != 1:
        raise _not_guidable(where, scale_setting)
    return sampler.model_copy(update={"guidance_scale": 1.0})


def check_scales(scales: Iterable[float], model: ModelConfig, *, where: str, setting: str) -> None:
    """UserError for a guidance scale other than 1 that a model cannot follow; it stands in ``setting``."""
    if not is_guidable(model) and any(scale != 1 for scale in scales):
        raise _not_guidable(where, setting)


def _not_guidable(where: str, setting: str) -> UserError:
    return UserError(
        f"{where} was trained without labels or without dropping them, so it can't be guided: leave "
        f"{setting} out, or at 1"
    )


@lru_cache(maxsize=256)
def _check_table(sampler: SamplerConfig, diffusion: DiffusionConfig, learn_sigma: bool) -> None:
    """ValueError where there is no table of these settings, or it begins too late.

    Cached, since a server asks for each request.
    """
    schedule = linear_schedule(diffusion)
    first = float(make_table(sampler, schedule, learn_sigma=learn_sigma).timesteps[0])
    signal = float(np.interp(first, np.arange(schedule.num_timesteps), schedule.alphas_cumprod))
    if signal > MOST_SIGNAL >= schedule.alphas_cumprod[-1]:
        raise ValueError(
            f"the first time step visited is {first:g}, where images are hardly noisy any more, so the noise "
            f"would come back as the image: begin near {schedule.num_timesteps - 1}"
        )
