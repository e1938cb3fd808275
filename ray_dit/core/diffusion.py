"""Gaussian diffusion as tables and closed forms: schedule, respacing, q(x_t | x_0), p(x_{t-1} | x_t).

Knows neither the network (it is given the network's output) nor samplers, guidance or randomness (noise is an
argument). Tables are float64 numpy; they are gathered for every row's own time step and applied in float32.

B batch, C channels, H W height and width, T time steps of the schedule. Sources: Ho et al. 2020 (DDPM),
Nichol & Dhariwal 2021 (improved DDPM: respacing, learned variance, discretized likelihood).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from ray_dit.config import DiffusionConfig
from ray_dit.core.transfer import to_device

VarianceType = Literal["learned", "fixed_small", "fixed_large"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A forward process q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t), and its tables.

    Index t of each table is the schedule's own time step; ``timestep_map[t]`` is the time step of training
    that it stands for, the one the network is given. All tables are float64, made once and not to be written
    to.
    """

    betas: Float64[np.ndarray, " T"]
    timestep_map: Int64[np.ndarray, " T"]

    def __post_init__(self) -> None:
        if not np.all((self.betas > 0) & (self.betas < 1)):
            raise ValueError("betas must lie strictly between 0 and 1")

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        """alpha_bar_t, the squared weight of x_start in x_t (DDPM, below eq. 4)."""
        return np.cumprod(1.0 - self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> Float64[np.ndarray, " T"]:
        """alpha_bar_{t-1}, with 1 before the first step."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def sqrt_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        return np.sqrt(1.0 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        return np.sqrt(1.0 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Float64[np.ndarray, " T"]:
        return np.sqrt(1.0 / self.alphas_cumprod - 1.0)

    @cached_property
    def posterior_variance(self) -> Float64[np.ndarray, " T"]:
        """beta-tilde, the variance of q(x_{t-1} | x_t, x_0) (DDPM eq. 7); 0 at t = 0."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64[np.ndarray, " T"]:
        """log of beta-tilde, where t = 0 (whose variance is 0) repeats the value at t = 1."""
        # A schedule of one step has no t = 1. Its log-variance scales no noise; any finite value will do.
        first = self.posterior_variance[1] if self.num_timesteps > 1 else self.betas[0]
        return np.log(np.append(first, self.posterior_variance[1:]))

    @cached_property
    def fixed_large_variance(self) -> Float64[np.ndarray, " T"]:
        """beta, with beta-tilde of t = 1 at t = 0, for a better decoder likelihood (improved DDPM)."""
        first = math.exp(self.posterior_log_variance_clipped[0])
        return np.append(first, self.betas[1:])

    @cached_property
    def posterior_mean_coef1(self) -> Float64[np.ndarray, " T"]:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Float64[np.ndarray, " T"]:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        alphas = 1.0 - self.betas
        return (1.0 - self.alphas_cumprod_prev) * np.sqrt(alphas) / (1.0 - self.alphas_cumprod)


class Gaussian(NamedTuple):
    """A diagonal Gaussian; all [B, C, H, W] float32."""

    mean: Float[Tensor, "B C H W"]
    variance: Float[Tensor, "B C H W"]
    log_variance: Float[Tensor, "B C H W"]


class Prediction(NamedTuple):
    """The model's p(x_{t-1} | x_t) and the x_start it believes in; all [B, C, H, W] float32."""

    mean: Float[Tensor, "B C H W"]
    variance: Float[Tensor, "B C H W"]
    log_variance: Float[Tensor, "B C H W"]
    pred_xstart: Float[Tensor, "B C H W"]


def linear_schedule(config: DiffusionConfig) -> Schedule:
    """Betas rising linearly from ``beta_start`` to ``beta_end`` over training's time steps (DDPM, sec. 4)."""
    steps = config.num_train_timesteps
    betas = np.linspace(config.beta_start, config.beta_end, steps, dtype=np.float64)
    return Schedule(betas=betas, timestep_map=np.arange(steps, dtype=np.int64))


def space_timesteps(num_timesteps: int, spacing: int | str) -> Int64[np.ndarray, " S"]:
    """Which of ``num_timesteps`` time steps a shorter process visits, rising.

    A number N: from 0 to the last in N - 1 equal fractional strides, rounded (improved DDPM). ``"ddimN"``:
    every k-th from 0, with the smallest k that gives exactly N (Song et al. 2021). ValueError where there is
    no such choice.
    """
    text = str(spacing)
    count = text.removeprefix("ddim")
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= num_timesteps):
        raise ValueError(
            f"spacing {spacing!r} is neither a number of steps from 1 to {num_timesteps} nor ddim with one"
        )
    return _integer_stride(num_timesteps, int(count)) if text != count else _even(num_timesteps, int(count))


def _even(num_timesteps: int, count: int) -> Int64[np.ndarray, " S"]:
    stride = (num_timesteps - 1) / max(count - 1, 1)
    # A running sum, not stride * i: where a visited time ends in .5 the reference's rounding follows the
    # sum's.
    positions = np.cumsum(np.append(0.0, np.full(count - 1, stride)))
    return np.rint(positions).astype(np.int64)


def _integer_stride(num_timesteps: int, count: int) -> Int64[np.ndarray, " S"]:
    for stride in range(1, num_timesteps + 1):
        if len(range(0, num_timesteps, stride)) == count:
            return np.arange(0, num_timesteps, stride, dtype=np.int64)
    raise ValueError(f"no integer stride visits exactly {count} of {num_timesteps} time steps")


def respace(schedule: Schedule, timesteps: Int[np.ndarray, " S"] | Sequence[int]) -> Schedule:
    """The process that visits only ``timesteps`` (rising) of ``schedule``, with the same x_t there.

    Its betas are those whose running product meets the alpha_bar of the visited steps (improved DDPM, section
    4).
    """
    kept = np.asarray(timesteps, dtype=np.int64)
    if kept.size == 0 or kept[0] < 0 or kept[-1] >= schedule.num_timesteps or np.any(np.diff(kept) <= 0):
        raise ValueError(f"timesteps must be rising numbers from 0 to {schedule.num_timesteps - 1}")
    alphas_cumprod = schedule.alphas_cumprod[kept]
    betas = 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    return Schedule(betas=betas, timestep_map=schedule.timestep_map[kept])


def gather(table: Float64[np.ndarray, " T"], t: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    """Each row's entry of a table, rounded to float32, on the device of ``t``."""
    (entries,) = to_device(t.device, [torch.as_tensor(table.astype(np.float32))])
    return entries[t][:, None, None, None]


def q_sample(
    schedule: Schedule,
    x_start: Float[Tensor, "B C H W"],
    t: Int[Tensor, " B"],
    noise: Float[Tensor, "B C H W"],
) -> Float[Tensor, "B C H W"]:
    """x_t, drawn from q(x_t | x_start) with the given standard normal noise (DDPM eq. 4)."""
    signal = gather(schedule.sqrt_alphas_cumprod, t) * x_start
    return signal + gather(schedule.sqrt_one_minus_alphas_cumprod, t) * noise


def q_posterior(
    schedule: Schedule,
    x_start: Float[Tensor, "B C H W"],
    x_t: Float[Tensor, "B C H W"],
    t: Int[Tensor, " B"],
) -> Gaussian:
    """q(x_{t-1} | x_t, x_start) (DDPM eq. 6 and 7), the log-variance clipped at t = 0."""
    mean = gather(schedule.posterior_mean_coef1, t) * x_start + gather(schedule.posterior_mean_coef2, t) * x_t
    variance = gather(schedule.posterior_variance, t).expand_as(mean)
    log_variance = gather(schedule.posterior_log_variance_clipped, t).expand_as(mean)
    return Gaussian(mean, variance, log_variance)


def predict_xstart_from_eps(
    schedule: Schedule, x_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], eps: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """The x_start that, noised with ``eps``, is ``x_t`` (DDPM eq. 4 solved for x_0)."""
    recip, recipm1 = schedule.sqrt_recip_alphas_cumprod, schedule.sqrt_recipm1_alphas_cumprod
    return gather(recip, t) * x_t - gather(recipm1, t) * eps


def predict_eps_from_xstart(
    schedule: Schedule, x_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], x_start: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """The noise that takes ``x_start`` to ``x_t``: the inverse of ``predict_xstart_from_eps``."""
    recip, recipm1 = schedule.sqrt_recip_alphas_cumprod, schedule.sqrt_recipm1_alphas_cumprod
    return (gather(recip, t) * x_t - x_start) / gather(recipm1, t)


def learned_log_variance(
    schedule: Schedule, variance_output: Float[Tensor, "B C H W"], t: Int[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The network's log-variance: from log beta-tilde at -1 to log beta at 1 (improved DDPM eq. 15)."""
    low, high = gather(schedule.posterior_log_variance_clipped, t), gather(np.log(schedule.betas), t)
    fraction = (variance_output + 1.0) / 2.0
    return fraction * high + (1.0 - fraction) * low


def split_output(
    model_output: Float[Tensor, "B out H W"], channels: int
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"] | None]:
    """The network's output as (eps, variance_output), the second None where it predicts no variance.

    ``channels`` are those of x; ValueError unless the output has as many or twice as many.
    """
    if model_output.shape[1] == channels:
        return model_output, None
    if model_output.shape[1] == 2 * channels:
        return model_output[:, :channels], model_output[:, channels:]
    raise ValueError(f"the model's output has {model_output.shape[1]} channels, x has {channels}")


def p_mean_variance(
    schedule: Schedule,
    model_output: Float[Tensor, "B out H W"],
    x_t: Float[Tensor, "B C H W"],
    t: Int[Tensor, " B"],
    *,
    variance: VarianceType = "learned",
) -> Prediction:
    """p(x_{t-1} | x_t) from the network's output; pred_xstart is not clipped (latents have no range).

    ``variance``: learned needs a network that predicts it; fixed_small is beta-tilde, fixed_large beta.
    """
    eps, variance_output = split_output(model_output, x_t.shape[1])
    pred_xstart = predict_xstart_from_eps(schedule, x_t, t, eps)
    posterior = q_posterior(schedule, pred_xstart, x_t, t)
    if variance == "learned":
        if variance_output is None:
            raise ValueError(
                "variance 'learned' needs a model with learn_sigma; take fixed_small or fixed_large"
            )
        log_variance = learned_log_variance(schedule, variance_output, t)
        return Prediction(posterior.mean, log_variance.exp(), log_variance, pred_xstart)
    if variance == "fixed_small":
        return Prediction(*posterior, pred_xstart)
    large = gather(schedule.fixed_large_variance, t).expand_as(x_t)
    return Prediction(posterior.mean, large, large.log(), pred_xstart)


def normal_kl(
    mean1: Float[Tensor, "*shape"],
    log_variance1: Float[Tensor, "*shape"],
    mean2: Float[Tensor, "*shape"],
    log_variance2: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """KL(N1 || N2) of diagonal Gaussians, element by element, in nats."""
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1.0)


def discretized_gaussian_log_likelihood(
    x: Float[Tensor, "*shape"], *, means: Float[Tensor, "*shape"], log_scales: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """log of the Gaussian's mass in the 8-bit bin around ``x`` in [-1, 1], in nats (DDPM eq. 13).

    The outermost bins reach to infinity; masses are kept above 1e-12.
    """
    inverse_scale = torch.exp(-log_scales)
    centered = x - means
    cdf_above = _normal_cdf(inverse_scale * (centered + 1.0 / 255.0))
    cdf_below = _normal_cdf(inverse_scale * (centered - 1.0 / 255.0))
    mass = torch.where(x < -0.999, cdf_above, torch.where(x > 0.999, 1.0 - cdf_below, cdf_above - cdf_below))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    # The tanh approximation, not erf: published likelihoods were measured with it.
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
