"""UniPC for data prediction with B(h) = e^h - 1, called bh2: predictor and corrector."""

import numpy as np

from ray_dit.config import SamplerConfig
from ray_dit.core.samplers.multistep import corrector, order_at, predictor
from ray_dit.core.samplers.table import NUM_HISTORY, Nodes, Sampler


def columns(config: SamplerConfig, nodes: Nodes, learn_sigma: bool) -> dict[str, np.ndarray]:
    """Each row predicts, and corrects the row before.

    The state is the predictor's result. The corrector of a step needs the prediction made from that result,
    so it is part of the next row: both share the ratio of σ, hence correcting only adds predictions to x. A
    corrector after the last step would cost one more call of the network and, at a clean end, change nothing.
    """
    a = nodes.sigma[1:] / nodes.sigma[:-1]
    b = np.zeros((nodes.num_steps, NUM_HISTORY + 1))
    for step in range(nodes.num_steps):
        b[step, :NUM_HISTORY] = predictor(nodes, step, order_at(nodes, step, config.order))
        if step:
            before = order_at(nodes, step - 1, config.order)
            correction = corrector(nodes, step - 1, before)
            correction[1:] -= predictor(nodes, step - 1, before)
            b[step] += a[step] * correction
    return {"a": a, "b": b}


SAMPLER = Sampler(
    title="UniPC", paper="Zhao et al. 2023 (UniPC), section 3", columns=columns, orders=(1, 2, 3)
)
