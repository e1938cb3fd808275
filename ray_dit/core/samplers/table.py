"""What a sampler is, and the table it makes; knows no sampler by name.

Steps go from node 0 (the noisiest) to node n; the network is called at nodes 0..n-1. With ᾱ = alphas_cumprod
a node has the signal rate α = √ᾱ, the noise rate σ = √(1-ᾱ) and λ = log(α/σ).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from ray_dit.config import SamplerConfig

NUM_HISTORY = 3
"""Earlier predictions a step may use; UniPC of order p uses p."""

Column = Float64[np.ndarray, " n"]
Spacing = Literal["uniform", "respaced", "leading", "trailing", "logsnr"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SamplerTable:
    """The coefficients of each of n steps; see the package's first lines."""

    timesteps: Column
    """What the network is given: time steps of training, falling, whole or fractional."""
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
    """Noise is weighted, element by element, with exp(½ log variance), between the two logs by the network's
    output."""
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


@dataclass(frozen=True, eq=False)
class Nodes:
    """The rates at all n+1 nodes."""

    alphas_cumprod: Column
    alpha: Column
    sigma: Column
    lambda_: Column

    @classmethod
    def of(cls, alphas_cumprod: Column) -> "Nodes":
        """The nodes with these ᾱ, rising; the last may be clean (1)."""
        alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod)
        with np.errstate(divide="ignore"):  # λ of a clean node is +inf
            return cls(alphas_cumprod, alpha, sigma, np.log(alpha) - np.log(sigma))

    @property
    def num_steps(self) -> int:
        """n, one less than there are nodes."""
        return len(self.alpha) - 1

    @property
    def ends_clean(self) -> bool:
        """Whether the last node is the clean image."""
        return bool(self.sigma[-1] == 0)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler: what its settings are, and the columns of its table."""

    title: str
    """Its name in print."""
    paper: str
    """Where its equations come from."""
    columns: Callable[[SamplerConfig, Nodes, bool], dict[str, np.ndarray]]
    """(settings, nodes, whether the network predicts the variance) → ``a`` and ``b``, and ``d`` or the
    variance's columns where it adds noise. ValueError where the settings ask for what the network has not."""
    default_spacing: Spacing = "uniform"
    """What the spacing "auto" means for it."""
    orders: tuple[int, ...] = ()
    """Orders it can have; none: it has no such setting, and ``SamplerConfig.order`` is not looked at."""
    uses_eta: bool = False
    """Whether ``SamplerConfig.eta`` changes anything."""
    uses_variance: bool = False
    """Whether ``SamplerConfig.variance`` changes anything."""


def first_only(weights: Column) -> Float64[np.ndarray, "n 4"]:
    """b of a sampler that uses no earlier prediction: these weights of x0 now."""
    return np.pad(weights[:, None], ((0, 0), (0, NUM_HISTORY)))
