"""DDIM: deterministic, or with as much of DDPM's noise as ``eta`` says."""

import numpy as np

from ray_dit.config import SamplerConfig
from ray_dit.core.samplers.table import Nodes, Sampler, first_only


def columns(config: SamplerConfig, nodes: Nodes, learn_sigma: bool) -> dict[str, np.ndarray]:
    """Equations 12 and 16, with eps written as (x - α·x0)/σ."""
    alpha, alpha_after = nodes.alpha[:-1], nodes.alpha[1:]
    sigma, sigma_after = nodes.sigma[:-1], nodes.sigma[1:]
    noise = config.eta * sigma_after / sigma * np.sqrt(1.0 - (alpha / alpha_after) ** 2)
    a = np.sqrt(sigma_after**2 - noise**2) / sigma
    return {"a": a, "b": first_only(alpha_after - a * alpha), "d": noise}


SAMPLER = Sampler(
    title="DDIM", paper="Song et al. 2021 (DDIM), eq. 12 and 16", columns=columns, uses_eta=True
)
