"""The samplers there are, by name, and the table of some settings; knows no sampler's equations.

The names are ``config.SamplerName``, so that a wrong one is refused, and the right ones are listed, wherever
settings are given. Each is a module beside this one; nothing else imports it.
"""

import math
from importlib import import_module
from typing import get_args

import numpy as np
from jaxtyping import Float64

from ray_dit.config import SamplerConfig, SamplerName
from ray_dit.core.diffusion import Schedule
from ray_dit.core.samplers.spacing import alphas_cumprod_at, visited_timesteps
from ray_dit.core.samplers.table import Column, Nodes, Sampler, SamplerTable

SAMPLERS: dict[str, Sampler] = {
    name: import_module(f"ray_dit.core.samplers.{name}").SAMPLER for name in get_args(SamplerName)
}


def check_settings(config: SamplerConfig) -> None:
    """Refuses settings that the sampler itself has not, whatever the model.

    Raises:
        ValueError: the order is not one of the sampler's.
    """
    orders = SAMPLERS[config.name].orders
    if orders and config.order not in orders:
        known = " or ".join(map(str, orders))
        able = [name for name, sampler in SAMPLERS.items() if config.order in sampler.orders]
        way_out = f"; for order {config.order} take {' or '.join(able)}" if able else ""
        raise ValueError(f"{config.name} has order {known}{way_out}")


def make_table(config: SamplerConfig, schedule: Schedule, *, learn_sigma: bool) -> SamplerTable:
    """The table of these settings on a schedule of training; the last step ends at the clean image (σ = 0).

    ``learn_sigma``: whether the network predicts the variance. ValueError where the settings ask for more
    than the sampler, the schedule or the network has.
    """
    timesteps = visited_timesteps(config, schedule, SAMPLERS[config.name].default_spacing)
    alphas_cumprod = np.append(alphas_cumprod_at(schedule, timesteps), 1.0)
    return table_from_nodes(config, timesteps, alphas_cumprod, learn_sigma=learn_sigma)


def table_from_nodes(
    config: SamplerConfig,
    timesteps: Column,
    alphas_cumprod: Float64[np.ndarray, " n+1"],
    *,
    learn_sigma: bool,
) -> SamplerTable:
    """The table through given nodes.

    They are n time steps, falling, and n+1 ᾱ, rising, of which the last may be 1 (clean).
    """
    check_settings(config)
    if len(alphas_cumprod) != len(timesteps) + 1 or np.any(np.diff(alphas_cumprod) <= 0):
        raise ValueError("alphas_cumprod must hold one rising value per time step and one for the end")
    now = alphas_cumprod[:-1]
    low, high = config.guidance_interval or (-math.inf, math.inf)
    columns: dict[str, np.ndarray] = {
        "timesteps": np.asarray(timesteps, dtype=np.float64),
        "c_x": np.sqrt(1.0 / now),
        "c_eps": np.sqrt(1.0 / now - 1.0),
        "d": np.zeros_like(now),
        "log_variance_min": np.zeros_like(now),
        "log_variance_max": np.zeros_like(now),
        "learned_variance": np.zeros(now.shape, dtype=bool),
        "guided": (timesteps >= low) & (timesteps <= high),
    }
    columns |= SAMPLERS[config.name].columns(config, Nodes.of(alphas_cumprod), learn_sigma)
    return SamplerTable(**columns)
