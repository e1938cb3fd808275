"""Predictor and corrector of samplers that look back: weights of predictions from the nodes' λ.

Knows no table.

Samplers of higher order start at order 1 and gain one per step; where node n is clean (σ = 0) they also come
down to order 1 at the last step, since λ is infinite there.
"""

import math

import numpy as np
from jaxtyping import Float64

from ray_dit.core.samplers.table import NUM_HISTORY, Column, Nodes


def order_at(nodes: Nodes, step: int, order: int) -> int:
    """The order a sampler of this order can have at a step."""
    ending = nodes.num_steps - step if nodes.ends_clean else order
    return min(order, step + 1, ending)


def predictor(nodes: Nodes, step: int, order: int) -> Float64[np.ndarray, " 3"]:
    """Weights of x0 at node ``step`` and the two before it in the step to the next node.

    Order 2 takes rho = ½, as the paper does: that is DPM-Solver++(2M).
    """
    ratios = _step_ratios(nodes, step, order)
    rhos = np.array([0.5]) if order == 2 else _rhos(nodes, step, ratios)
    return _growth(nodes, step) * _extrapolation(ratios, rhos)


def corrector(nodes: Nodes, step: int, order: int) -> Float64[np.ndarray, " 4"]:
    """Weights of x0 at node ``step`` + 1, at ``step`` and the two before, in the corrected step."""
    ratios = _step_ratios(nodes, step, order)
    rhos = np.array([0.5]) if order == 1 else _rhos(nodes, step, np.append(ratios, 1.0))
    weights = np.append(rhos[-1], _extrapolation(ratios, rhos[:-1]))
    weights[1] -= rhos[-1]
    return _growth(nodes, step) * weights


def _growth(nodes: Nodes, step: int) -> float:
    """Weight of a constant x0 in the step: α' (1 - e^{-h}), h the step in λ."""
    return -nodes.alpha[step + 1] * math.expm1(nodes.lambda_[step] - nodes.lambda_[step + 1])


def _step_ratios(nodes: Nodes, step: int, order: int) -> Column:
    """Where the ``order`` - 1 predictions before ``step`` lie in λ: 0 at ``step``, 1 at the next node."""
    earlier = nodes.lambda_[step - np.arange(1, order)]
    return (earlier - nodes.lambda_[step]) / (nodes.lambda_[step + 1] - nodes.lambda_[step])


def _extrapolation(ratios: Column, rhos: Column) -> Float64[np.ndarray, " 3"]:
    """Weights of x0 and the two before it in  x0 + Σ_k rho_k (x0_{-k} - x0) / r_k."""
    earlier = rhos / ratios
    return np.pad(np.append(1.0 - earlier.sum(), earlier), (0, NUM_HISTORY - 1 - len(earlier)))


def _rhos(nodes: Nodes, step: int, ratios: Column) -> Column:
    """Solves  Σ_k rho_k r_k^{j-1} = j! φ_{j+1}(-h) (-h) / (e^{-h} - 1)  for j = 1..len(ratios) (UniPC, 3).

    φ_{j+1}(z) = (φ_j(z) - 1/j!) / z and φ_1(z) = (e^z - 1) / z are the exponential integrators' functions.
    """
    z = nodes.lambda_[step] - nodes.lambda_[step + 1]
    base, right = math.expm1(z), np.zeros(len(ratios))
    phi = base / z
    for j in range(1, len(ratios) + 1):
        phi = (phi - 1.0 / math.factorial(j)) / z
        right[j - 1] = math.factorial(j) * phi * z / base
    return np.linalg.solve(np.vander(ratios, increasing=True).T, right)
