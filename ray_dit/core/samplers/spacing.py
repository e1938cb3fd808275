"""Which time steps are visited, and ᾱ there; knows the schedule and no sampler."""

import numpy as np

from ray_dit.config import SamplerConfig
from ray_dit.core.diffusion import Schedule, space_timesteps
from ray_dit.core.samplers.table import Column, Nodes, Spacing


def visited_timesteps(config: SamplerConfig, schedule: Schedule, default: Spacing) -> Column:
    """The time steps the settings ask for, falling; ``default`` is what the spacing "auto" means.

    Raises:
        ValueError: the schedule has not got them.
    """
    total, steps = schedule.num_timesteps, config.num_inference_steps
    if config.timesteps is not None:
        timesteps = np.array(config.timesteps, dtype=np.float64)
        if timesteps[0] > total - 1:
            raise ValueError(f"timesteps must lie in [0, {total - 1}], not {timesteps[0]:g}")
        return timesteps
    if steps > total:
        raise ValueError(f"{steps} steps of {total} time steps: at most {total} can be visited")
    return _spaced(default if config.spacing == "auto" else config.spacing, steps, schedule)


def _spaced(spacing: Spacing, steps: int, schedule: Schedule) -> Column:
    """The time steps of a spacing, falling.

    respaced and leading are the reference's fractional and whole strides from 0 (``space_timesteps``);
    uniform is diffusers' linspace of its multistep schedulers, n + 1 points from T-1 to 0 without the 0, and
    all of them for n = T; trailing has equal strides down from T-1; logsnr has equal strides in λ, the time
    steps not rounded.
    """
    last = schedule.num_timesteps - 1
    if spacing == "respaced":
        # One step from time 0 would take pure noise for an image: start it at the noise.
        return (
            space_timesteps(last + 1, steps)[::-1].astype(np.float64)
            if steps > 1
            else np.array([float(last)])
        )
    if spacing == "leading" and steps == 1 and last > 0:
        raise ValueError(
            "spacing 'leading' visits time 0 alone in 1 step, so the noise would come back as the image: "
            "take 'trailing', or more steps"
        )
    if spacing == "leading":
        return space_timesteps(last + 1, f"ddim{steps}")[::-1].astype(np.float64)
    if spacing == "trailing":
        return np.round(np.arange(last + 1, 0, -(last + 1) / steps))[:steps] - 1.0
    if spacing == "uniform" and steps == last + 1:
        return np.arange(last, -1.0, -1.0)
    if spacing == "uniform":
        return np.round(np.linspace(0, last, steps + 1))[:0:-1]
    lambdas = Nodes.of(schedule.alphas_cumprod).lambda_
    wanted = np.linspace(float(lambdas[-1]), float(lambdas[0]), steps + 1)[:-1]
    return np.asarray(np.interp(-wanted, -lambdas, np.arange(last + 1.0)))


def alphas_cumprod_at(schedule: Schedule, timesteps: Column) -> Column:
    """ᾱ at whole time steps from the table; between them λ is interpolated linearly."""
    whole = timesteps == np.floor(timesteps)
    lambdas = Nodes.of(schedule.alphas_cumprod).lambda_
    between = 1.0 / (1.0 + np.exp(-2.0 * np.interp(timesteps, np.arange(len(lambdas)), lambdas)))
    return np.where(whole, schedule.alphas_cumprod[timesteps.astype(np.int64)], between)
