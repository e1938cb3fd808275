"""DPM-Solver++ for data prediction.

Its order is 1, which is DDIM without noise, or 2, the paper's algorithm 2 ("2M").
"""

import numpy as np

from ray_dit.config import SamplerConfig
from ray_dit.core.samplers.multistep import order_at, predictor
from ray_dit.core.samplers.table import NUM_HISTORY, Nodes, Sampler


def columns(config: SamplerConfig, nodes: Nodes, learn_sigma: bool) -> dict[str, np.ndarray]:
    """x0 continued in a straight line over λ, and integrated."""
    b = np.zeros((nodes.num_steps, NUM_HISTORY + 1))
    for step in range(nodes.num_steps):
        b[step, :NUM_HISTORY] = predictor(nodes, step, order_at(nodes, step, config.order))
    return {"a": nodes.sigma[1:] / nodes.sigma[:-1], "b": b}


SAMPLER = Sampler(
    title="DPM-Solver++(2M)",
    paper="Lu et al. 2022 (DPM-Solver++), algorithm 2",
    columns=columns,
    orders=(1, 2),
)
