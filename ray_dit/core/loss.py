"""The training loss of a sample: squared error of eps, and the variational bound that trains the variance.

Knows neither the network nor the batch's mean: given the network's output it returns one number per sample.
Always float32, also on bfloat16 outputs or under autocast.

B batch, C channels, H W height and width. Sources: Ho et al. 2020, eq. 14; Nichol & Dhariwal 2021, section
3.1 (the hybrid loss, here without their weight 0.001, as DiT trains).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ray_dit.core.diffusion import (
    Schedule,
    discretized_gaussian_log_likelihood,
    gather,
    normal_kl,
    p_mean_variance,
    q_posterior,
    split_output,
)


class Losses(NamedTuple):
    """One number per sample; ``loss`` is what is trained on: mse (weighted if min-SNR is on) + vb."""

    loss: Float[Tensor, " B"]
    mse: Float[Tensor, " B"]
    """Mean squared error of eps, unweighted."""
    vb: Float[Tensor, " B"]
    """Term of the variational bound in bits per value; 0 where the variance is not learned."""


def diffusion_loss(
    schedule: Schedule,
    model_output: Float[Tensor, "B out H W"],
    x_start: Float[Tensor, "B C H W"],
    x_t: Float[Tensor, "B C H W"],
    t: Int[Tensor, " B"],
    noise: Float[Tensor, "B C H W"],
    *,
    learn_sigma: bool,
    min_snr_gamma: float | None = None,
) -> Losses:
    """Loss of the network's output for ``x_t = q_sample(schedule, x_start, t, noise)``.

    ``learn_sigma`` says whether the output holds a variance (else the loss is the squared error alone).
    ``min_snr_gamma`` weights the squared error (``min_snr_weight``). ValueError where channels don't fit.
    """
    model_output, x_start, x_t, noise = model_output.float(), x_start.float(), x_t.float(), noise.float()
    eps, variance_output = split_output(model_output, x_start.shape[1])
    if learn_sigma != (variance_output is not None):
        raise ValueError(
            f"learn_sigma is {learn_sigma}, but the model's output has {model_output.shape[1]} channels"
        )
    mse = _mean((noise - eps) ** 2)
    vb = torch.zeros_like(mse)
    if variance_output is not None:
        # eps is frozen: the bound trains the variance only (improved DDPM, section 3.1)
        frozen = torch.cat([eps.detach(), variance_output], dim=1)
        vb = variational_bound(schedule, frozen, x_start, x_t, t)
    weighted = mse if min_snr_gamma is None else mse * min_snr_weight(schedule, t, min_snr_gamma)
    return Losses(loss=weighted + vb, mse=mse, vb=vb)


def variational_bound(
    schedule: Schedule,
    model_output: Float[Tensor, "B out H W"],
    x_start: Float[Tensor, "B C H W"],
    x_t: Float[Tensor, "B C H W"],
    t: Int[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """L_t of the bound in bits per value (DDPM eq. 5).

    KL(q(x_{t-1} | x_t, x_0) || p), at t = 0 the decoder's -log p.
    """
    true, predicted = q_posterior(schedule, x_start, x_t, t), p_mean_variance(schedule, model_output, x_t, t)
    kl = normal_kl(true.mean, true.log_variance, predicted.mean, predicted.log_variance)
    log_likelihood = discretized_gaussian_log_likelihood(
        x_start, means=predicted.mean, log_scales=0.5 * predicted.log_variance
    )
    return torch.where(t == 0, -_mean(log_likelihood), _mean(kl)) / math.log(2.0)


def min_snr_weight(schedule: Schedule, t: Int[Tensor, " B"], gamma: float) -> Float[Tensor, " B"]:
    """The weight for eps of Hang et al. 2023, section 3.4.

    It is min(SNR, gamma) / SNR with SNR = alpha_bar / (1 - alpha_bar).
    """
    snr = schedule.alphas_cumprod / (1.0 - schedule.alphas_cumprod)
    return gather(snr.clip(max=gamma) / snr, t).flatten()


def _mean(values: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    return values.flatten(1).mean(dim=1)
