"""Images to numbers and back: uint8 and float pixels, moments to latents, normalisation.

Knows neither the VAE that lies between pixels and moments, nor randomness (noise is an argument).

B batch, C channels, H W height and width. Pixels: uint8 HWC RGB in storage, float32 NCHW in [-1, 1] at the
VAE's door.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from ray_dit.core.transfer import to_device

PerChannel = float | Sequence[float] | Float[Tensor, "..."]
"""One number for all channels, or one per channel."""
MAX_LOG_VARIANCE = 20.0
MIN_LOG_VARIANCE = -30.0


def to_float(images: UInt8[Tensor, "B H W C"]) -> Float[Tensor, "B C H W"]:
    """Pixels 0..255, HWC, as float32 in [-1, 1], CHW."""
    return (images.float() / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def to_uint8(images: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B H W C"]:
    """Floats, CHW, -1..1 (what lies outside is clamped), as pixels 0..255, HWC.

    They are 127.5 x + 128, truncated, as in DiT.
    """
    pixels = (127.5 * images.float() + 128.0).clamp(0.0, 255.0)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def sample_moments(
    moments: Float[Tensor, "B both H W"], noise: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """A draw from the VAE's posterior, float32.

    ``moments`` hold the mean, then the log-variance (kept in [-30, 20]).
    """
    mean, log_variance = moments.float().chunk(2, dim=1)
    if mean.shape != noise.shape:
        raise ValueError(
            f"moments of shape {tuple(moments.shape)} do not fit noise of shape {tuple(noise.shape)}"
        )
    log_variance = log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)
    return mean + torch.exp(0.5 * log_variance) * noise


def normalize(
    latents: Float[Tensor, "*B C H W"], shift: PerChannel, scale: PerChannel
) -> Float[Tensor, "*B C H W"]:
    """(latents - shift) * scale: what the DiT sees."""
    return (latents - _per_channel(shift, latents)) * _per_channel(scale, latents)


def denormalize(
    latents: Float[Tensor, "*B C H W"], shift: PerChannel, scale: PerChannel
) -> Float[Tensor, "*B C H W"]:
    """What the VAE decodes: the inverse of ``normalize``."""
    return latents / _per_channel(scale, latents) + _per_channel(shift, latents)


def _per_channel(values: PerChannel, latents: Tensor) -> Shaped[Tensor, "N 1 1"]:
    column = torch.as_tensor(values, dtype=latents.dtype)
    if column.is_cpu:
        (column,) = to_device(latents.device, [column])
    column = column.reshape(-1, 1, 1)
    if len(column) not in (1, latents.shape[-3]):
        raise ValueError(f"{len(column)} values for shift or scale do not fit {latents.shape[-3]} channels")
    return column
