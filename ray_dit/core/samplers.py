"""Samplers as tables: DDPM, DDIM, DPM-Solver++(2M) and UniPC are all linear in the state, the predictions and noise.

One row is one step:  x0 = c_x·x - c_eps·eps,  x' = a·x + Σ_k b_k·x0_{-k} + d·noise.  Knows the schedule's numbers only:
no tensors, network or batch. float64; ``sampling`` gathers the rows and applies them.

Steps go from node 0 (the noisiest) to node n; the network is called at nodes 0..n-1. With ᾱ = alphas_cumprod a node has
the signal rate α = √ᾱ, the noise rate σ = √(1-ᾱ) and λ = log(α/σ). Samplers of higher order start at order 1 and gain one
a step; where node n is clean (σ = 0) they also come down to order 1 at the last step, since λ is infinite there.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from ray_dit.config import SamplerConfig
from ray_dit.core.diffusion import Schedule, space_timesteps

NUM_HISTORY = 3
"""Earlier predictions a step may use; UniPC of order p uses p."""

Column = Float64[np.ndarray, " n"]
Spacing = Literal["uniform", "respaced", "leading", "trailing", "logsnr"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SamplerTable:
    """The coefficients of each of n steps; see the module's first lines."""

    timesteps: Column
    """What the network is told: time steps of training, falling, whole or fractional."""
    c_x: Column
    c_eps: Column
    a: Column
    b: Float64[np.ndarray, "n 4"]
    """Weights of x0 now and of the 3 before it."""
    d: Column
    """Weight of the noise, where the variance is not learned."""
    log_variance_min: Column
    log_variance_max: Column
    learned_variance: Bool[np.ndarray, " n"]
    """Noise is weighted, element by element, with exp(½ log variance), between the two logs by the network's output."""
    guided: Bool[np.ndarray, " n"]
    """Whether guidance acts at this step: it lies inside the guidance interval."""

    def __len__(self) -> int:
        return len(self.timesteps)

    def matrix(self) -> Float64[np.ndarray, "n columns"]:
        """All columns side by side, in the order of ``column_names()``."""
        return np.column_stack([getattr(self, field.name) for field in fields(self)]).astype(np.float64)


def column_names() -> list[str]:
    """Names of the columns of ``SamplerTable.matrix()``, where b has four: b0..b3."""
    names = [field.name for field in fields(SamplerTable)]
    place = names.index("b")
    return names[:place] + [f"b{k}" for k in range(NUM_HISTORY + 1)] + names[place + 1 :]


def make_table(config: SamplerConfig, schedule: Schedule, *, learn_sigma: bool) -> SamplerTable:
    """The table of these settings on a schedule of training; the last step ends at the clean image (σ = 0).

    ``learn_sigma``: whether the network predicts the variance. ValueError where the settings ask for more than the
    schedule or the network has.
    """
    timesteps = _timesteps(config, schedule)
    alphas_cumprod = np.append(_alphas_cumprod_at(schedule, timesteps), 1.0)
    return table_from_nodes(config, timesteps, alphas_cumprod, learn_sigma=learn_sigma)


def table_from_nodes(
    config: SamplerConfig,
    timesteps: Column,
    alphas_cumprod: Float64[np.ndarray, " n+1"],
    *,
    learn_sigma: bool,
) -> SamplerTable:
    """The table through given nodes: n time steps, falling, and n+1 ᾱ, rising, of which the last may be 1 (clean)."""
    if len(alphas_cumprod) != len(timesteps) + 1 or np.any(np.diff(alphas_cumprod) <= 0):
        raise ValueError("alphas_cumprod must hold one rising value a time step and one for the end")
    nodes = _Nodes.of(alphas_cumprod)
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
    if config.name == "ddpm":
        columns |= _ddpm(config, alphas_cumprod, learn_sigma)
    elif config.name == "ddim":
        columns |= _ddim(config.eta, nodes)
    elif config.name == "dpmpp":
        columns |= _dpmpp(config.order, nodes)
    else:
        columns |= _unipc(config.order, nodes)
    return SamplerTable(**columns)


@dataclass(frozen=True, eq=False)
class _Nodes:
    """The rates at all n+1 nodes."""

    alpha: Column
    sigma: Column
    lambda_: Column

    @classmethod
    def of(cls, alphas_cumprod: Column) -> "_Nodes":
        alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod)
        with np.errstate(divide="ignore"):  # λ of a clean node is +inf
            return cls(alpha, sigma, np.log(alpha) - np.log(sigma))

    @property
    def num_steps(self) -> int:
        return len(self.alpha) - 1

    @property
    def ends_clean(self) -> bool:
        return bool(self.sigma[-1] == 0)

    def order_at(self, step: int, order: int) -> int:
        """The order a multistep sampler can have at a step: see the module's first lines."""
        ending = self.num_steps - step if self.ends_clean else order
        return min(order, step + 1, ending)


def _timesteps(config: SamplerConfig, schedule: Schedule) -> Column:
    total, steps = schedule.num_timesteps, config.num_inference_steps
    if config.timesteps is not None:
        timesteps = np.array(config.timesteps, dtype=np.float64)
        if timesteps[0] > total - 1:
            raise ValueError(f"timesteps must lie in [0, {total - 1}], not {timesteps[0]:g}")
        return timesteps
    if steps > total:
        raise ValueError(f"{steps} steps of {total} time steps: at most {total} can be visited")
    spacing: Spacing = (
        config.spacing if config.spacing != "auto" else "respaced" if config.name == "ddpm" else "uniform"
    )
    return _spaced(spacing, steps, schedule)


def _spaced(spacing: Spacing, steps: int, schedule: Schedule) -> Column:
    """The time steps of a spacing, falling.

    respaced and leading are the reference's fractional and whole strides from 0 (``space_timesteps``); uniform is
    diffusers' linspace of its multistep schedulers, n + 1 points from T-1 to 0 without the 0, and all of them for n = T;
    trailing has equal strides down from T-1; logsnr has equal strides in λ, the time steps not rounded.
    """
    last = schedule.num_timesteps - 1
    if spacing == "respaced":
        # One step from time 0 would take pure noise for an image: start it at the noise.
        return (
            space_timesteps(last + 1, steps)[::-1].astype(np.float64)
            if steps > 1
            else np.array([float(last)])
        )
    if spacing == "leading":
        return space_timesteps(last + 1, f"ddim{steps}")[::-1].astype(np.float64)
    if spacing == "trailing":
        return np.round(np.arange(last + 1, 0, -(last + 1) / steps))[:steps] - 1.0
    if spacing == "uniform" and steps == last + 1:
        return np.arange(last, -1.0, -1.0)
    if spacing == "uniform":
        return np.round(np.linspace(0, last, steps + 1))[:0:-1]
    lambdas = _Nodes.of(schedule.alphas_cumprod).lambda_
    wanted = np.linspace(float(lambdas[-1]), float(lambdas[0]), steps + 1)[:-1]
    return np.asarray(np.interp(-wanted, -lambdas, np.arange(last + 1.0)))


def _alphas_cumprod_at(schedule: Schedule, timesteps: Column) -> Column:
    """ᾱ at whole time steps from the table; between them λ is interpolated linearly."""
    whole = timesteps == np.floor(timesteps)
    lambdas = _Nodes.of(schedule.alphas_cumprod).lambda_
    between = 1.0 / (1.0 + np.exp(-2.0 * np.interp(timesteps, np.arange(len(lambdas)), lambdas)))
    return np.where(whole, schedule.alphas_cumprod[timesteps.astype(np.int64)], between)


def _weights(first: Column) -> Float64[np.ndarray, "n 4"]:
    """b of a sampler that uses no earlier prediction."""
    return np.pad(first[:, None], ((0, 0), (0, NUM_HISTORY)))


def _ddpm(config: SamplerConfig, alphas_cumprod: Column, learn_sigma: bool) -> dict[str, np.ndarray]:
    """Ancestral sampling of the respaced process (Ho et al. 2020, eq. 7; variance: Nichol & Dhariwal 2021, eq. 15).

    β is that of the step between two nodes. A last step that ends clean adds no noise.
    """
    variance = config.variance if config.variance != "auto" else "learned" if learn_sigma else "fixed_small"
    if variance == "learned" and not learn_sigma:
        raise ValueError("variance 'learned' needs a model with learn_sigma; take fixed_small or fixed_large")
    now, after = alphas_cumprod[:-1], alphas_cumprod[1:]
    beta = 1.0 - now / after
    posterior = beta * (1.0 - after) / (1.0 - now)
    noisy = after < 1.0
    log_min = np.log(np.where(noisy, posterior, 1.0))
    log_max = np.log(np.where(noisy, beta, 1.0))
    log_variance = log_max if variance == "fixed_large" else log_min
    learned = variance == "learned"
    return {
        "a": (1.0 - after) * np.sqrt(1.0 - beta) / (1.0 - now),
        "b": _weights(beta * np.sqrt(after) / (1.0 - now)),
        "d": np.where(noisy & (not learned), np.exp(0.5 * log_variance), 0.0),
        "log_variance_min": log_min,
        "log_variance_max": log_max,
        "learned_variance": noisy & learned,
    }


def _ddim(eta: float, nodes: _Nodes) -> dict[str, np.ndarray]:
    """Song et al. 2021, eq. 12 and 16, with eps written as (x - α·x0)/σ."""
    alpha, sigma, alpha_after, sigma_after = (
        nodes.alpha[:-1],
        nodes.sigma[:-1],
        nodes.alpha[1:],
        nodes.sigma[1:],
    )
    noise = eta * sigma_after / sigma * np.sqrt(1.0 - (alpha / alpha_after) ** 2)
    a = np.sqrt(sigma_after**2 - noise**2) / sigma
    return {"a": a, "b": _weights(alpha_after - a * alpha), "d": noise}


def _dpmpp(order: int, nodes: _Nodes) -> dict[str, np.ndarray]:
    """DPM-Solver++ (Lu et al. 2022): order 1, which is DDIM without noise, or 2, its algorithm 2 ("2M")."""
    b = np.zeros((nodes.num_steps, NUM_HISTORY + 1))
    for step in range(nodes.num_steps):
        b[step, :NUM_HISTORY] = _predictor(nodes, step, nodes.order_at(step, order))
    return {"a": nodes.sigma[1:] / nodes.sigma[:-1], "b": b}


def _unipc(order: int, nodes: _Nodes) -> dict[str, np.ndarray]:
    """UniPC (Zhao et al. 2023) for data prediction with B(h) = e^h - 1, called bh2: predictor and corrector.

    The state is the predictor's result. The corrector of a step needs the prediction made from that result, so it is
    part of the next row: both share the ratio of σ, hence correcting only adds predictions to x. A corrector after the
    last step would cost one more call of the network and, at a clean end, change nothing.
    """
    a = nodes.sigma[1:] / nodes.sigma[:-1]
    b = np.zeros((nodes.num_steps, NUM_HISTORY + 1))
    for step in range(nodes.num_steps):
        b[step, :NUM_HISTORY] = _predictor(nodes, step, nodes.order_at(step, order))
        if step:
            before = nodes.order_at(step - 1, order)
            correction = _corrector(nodes, step - 1, before)
            correction[1:] -= _predictor(nodes, step - 1, before)
            b[step] += a[step] * correction
    return {"a": a, "b": b}


def _predictor(nodes: _Nodes, step: int, order: int) -> Float64[np.ndarray, " 3"]:
    """Weights of x0 at node ``step`` and the two before it in the step to the next node.

    Order 2 takes rho = ½, as the paper does: that is DPM-Solver++(2M).
    """
    ratios = _step_ratios(nodes, step, order)
    rhos = np.array([0.5]) if order == 2 else _rhos(nodes, step, ratios)
    return _growth(nodes, step) * _extrapolation(ratios, rhos)


def _corrector(nodes: _Nodes, step: int, order: int) -> Float64[np.ndarray, " 4"]:
    """Weights of x0 at node ``step`` + 1, at ``step`` and the two before it in the corrected step between the two."""
    ratios = _step_ratios(nodes, step, order)
    rhos = np.array([0.5]) if order == 1 else _rhos(nodes, step, np.append(ratios, 1.0))
    weights = np.append(rhos[-1], _extrapolation(ratios, rhos[:-1]))
    weights[1] -= rhos[-1]
    return _growth(nodes, step) * weights


def _growth(nodes: _Nodes, step: int) -> float:
    """Weight of a constant x0 in the step: α' (1 - e^{-h}), h the step in λ."""
    return -nodes.alpha[step + 1] * math.expm1(nodes.lambda_[step] - nodes.lambda_[step + 1])


def _step_ratios(nodes: _Nodes, step: int, order: int) -> Column:
    """Where the ``order`` - 1 predictions before node ``step`` lie in λ: 0 at ``step``, 1 at the next node."""
    earlier = nodes.lambda_[step - np.arange(1, order)]
    return (earlier - nodes.lambda_[step]) / (nodes.lambda_[step + 1] - nodes.lambda_[step])


def _extrapolation(ratios: Column, rhos: Column) -> Float64[np.ndarray, " 3"]:
    """Weights of x0 and the two before it in  x0 + Σ_k rho_k (x0_{-k} - x0) / r_k."""
    earlier = rhos / ratios
    return np.pad(np.append(1.0 - earlier.sum(), earlier), (0, NUM_HISTORY - 1 - len(earlier)))


def _rhos(nodes: _Nodes, step: int, ratios: Column) -> Column:
    """Solves  Σ_k rho_k r_k^{j-1} = j! φ_{j+1}(-h) (-h) / (e^{-h} - 1)  for j = 1..len(ratios) (UniPC, section 3).

    φ_{j+1}(z) = (φ_j(z) - 1/j!) / z and φ_1(z) = (e^z - 1) / z are the exponential integrators' functions.
    """
    z = nodes.lambda_[step] - nodes.lambda_[step + 1]
    base, right = math.expm1(z), np.zeros(len(ratios))
    phi = base / z
    for j in range(1, len(ratios) + 1):
        phi = (phi - 1.0 / math.factorial(j)) / z
        right[j - 1] = math.factorial(j) * phi * z / base
    return np.linalg.solve(np.vander(ratios, increasing=True).T, right)
