"""DDPM: ancestral sampling of the respaced process."""

import numpy as np

from ray_dit.config import SamplerConfig
from ray_dit.core.samplers.table import Nodes, Sampler, first_only


def columns(config: SamplerConfig, nodes: Nodes, learn_sigma: bool) -> dict[str, np.ndarray]:
    """The posterior's mean and variance; β is that of the step between two nodes.

    A last step that ends clean adds no noise.

    Raises:
        ValueError: a learned variance is asked of a network that predicts none.
    """
    variance = config.variance if config.variance != "auto" else "learned" if learn_sigma else "fixed_small"
    if variance == "learned" and not learn_sigma:
        raise ValueError("variance 'learned' needs a model with learn_sigma; take fixed_small or fixed_large")
    now, after = nodes.alphas_cumprod[:-1], nodes.alphas_cumprod[1:]
    beta = 1.0 - now / after
    posterior = beta * (1.0 - after) / (1.0 - now)
    noisy = after < 1.0
    log_min = np.log(np.where(noisy, posterior, 1.0))
    log_max = np.log(np.where(noisy, beta, 1.0))
    log_variance = log_max if variance == "fixed_large" else log_min
    learned = variance == "learned"
    return {
        "a": (1.0 - after) * np.sqrt(1.0 - beta) / (1.0 - now),
        "b": first_only(beta * np.sqrt(after) / (1.0 - now)),
        "d": np.where(noisy & (not learned), np.exp(0.5 * log_variance), 0.0),
        "log_variance_min": log_min,
        "log_variance_max": log_max,
        "learned_variance": noisy & learned,
    }


SAMPLER = Sampler(
    title="DDPM",
    paper="Ho et al. 2020, eq. 7; learned variance: Nichol & Dhariwal 2021, eq. 15",
    columns=columns,
    default_spacing="respaced",
    uses_variance=True,
)
