"""Classifier-free guidance (Ho & Salimans 2022) row by row: who needs an unconditional twin, how both mix.

Knows nothing of samplers, schedules or randomness. Guidance acts on the first ``guidance_channels`` channels
of eps only (3 for official DiT models, whose code does so; all otherwise); other channels and the variance
stay conditional.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ray_dit.core.diffusion import split_output

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B, C, H, W], t [B] float32, y [B] int64) → [B, C or 2C, H, W]: eps, then the variance if it is
learned."""


@dataclass(frozen=True, eq=False)
class Call:
    """The rows that one call of the network holds, decided without looking at the latents."""

    num_rows: int
    """R, the rows to be predicted."""
    twins: Int64[Tensor, " G"]
    """Those of them that have an unconditional twin."""
    rows: Int64[Tensor, " N"]
    """For each row of the call the one it copies: the rows, their twins, then row 0 as padding."""


@dataclass(frozen=True)
class GuidedModel:
    """A network and what guidance must know of it."""

    network: Network
    null_label: int | None
    """The label that stands for no class; None where the network knows no such label, and guidance is off."""
    guidance_channels: int | None = None
    """Guidance acts on so many of the first channels; None: on all."""

    def twins(self, guidance_scale: Float[Tensor, " R"], guided: Bool[Tensor, " R"]) -> Int64[Tensor, " G"]:
        """Which rows need an unconditional twin: guided at this step, by a scale other than 1."""
        if self.null_label is None:
            return torch.zeros(0, dtype=torch.int64)
        return torch.nonzero(guided & (guidance_scale != 1.0)).flatten()

    def call(
        self,
        guidance_scale: Float[Tensor, " R"],
        guided: Bool[Tensor, " R"],
        pad_to: int | Sequence[int] | None = None,
    ) -> Call:
        """The call that predicts these rows; all tensors are on the CPU.

        ``pad_to``: make it that many rows, or the least of these sizes that fits, with copies of row 0, so
        that the network sees few shapes. ValueError if none fits.
        """
        num_rows, twins = len(guidance_scale), self.twins(guidance_scale, guided)
        total = num_rows + len(twins)
        sizes = [total] if pad_to is None else [pad_to] if isinstance(pad_to, int) else sorted(pad_to)
        fitting = [size for size in sizes if size >= total]
        if not fitting:
            raise ValueError(
                f"{num_rows} rows and {len(twins)} unconditional ones do not fit into {sizes[-1]}"
            )
        padding = torch.zeros(fitting[0] - total, dtype=torch.int64)
        return Call(num_rows, twins, torch.cat((torch.arange(num_rows), twins, padding)))

    def predict(
        self,
        x: Float[Tensor, "R C H W"],
        t: Float[Tensor, " R"],
        labels: Int64[Tensor, " R"],
        guidance_scale: Float[Tensor, " R"],
        call: Call,
    ) -> tuple[Float[Tensor, "R C H W"], Float[Tensor, "R C H W"] | None]:
        """Guided eps and, where the network gives it, the variance output, from one call of N rows.

        All tensors, those of ``call`` too, are on the network's device, and nothing waits for it.
        """
        num_rows, num_twins = call.num_rows, len(call.twins)
        if len(call.rows) > num_rows:
            x_in, t, labels = x[call.rows], t[call.rows], labels[call.rows]
            labels[num_rows : num_rows + num_twins] = 0 if self.null_label is None else self.null_label
        else:
            x_in, t = x, t.contiguous()  # for a column of a table a compiler would make other code
        output = self.network(x_in, t, labels)[: num_rows + num_twins].to(x.dtype)
        eps, variance = split_output(output, x.shape[1])
        if num_twins:
            eps = self._mix(guidance_scale, call.twins, eps)
        return eps[:num_rows], None if variance is None else variance[:num_rows]

    def _mix(
        self, guidance_scale: Float[Tensor, " R"], twins: Int64[Tensor, " G"], eps: Float[Tensor, "R+G C H W"]
    ) -> Float[Tensor, "R C H W"]:
        """uncond + scale (cond - uncond) in the rows that have a twin."""
        channels = slice(self.guidance_channels)
        num_rows = len(guidance_scale)
        cond, uncond = eps[twins, channels], eps[num_rows:, channels]
        scale = guidance_scale[twins, None, None, None]
        mixed = eps[:num_rows].clone()
        mixed[twins, channels] = uncond + scale * (cond - uncond)
        return mixed
