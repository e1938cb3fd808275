"""The diffusion transformer of Peebles & Xie 2022 (DiT, adaLN-Zero), with the official parameter names.

Knows nothing of noise schedules, guidance, label dropping or training: (x_t, t, labels) in, prediction out.
Labels that are to be dropped arrive as the null class. Time embedding, modulation and final layer compute in
float32 even under autocast; the blocks' matrix products follow autocast.

B batch, C channels, H W height and width of the latents, N tokens, D hidden size.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, Real
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from ray_dit.config import DiTConfig

FREQUENCY_SIZE = 256
"""Width of the sinusoidal time embedding ahead of its MLP."""


class DiT(nn.Module):
    """A class-conditional diffusion transformer: predicts eps, and the variance where ``config.learn_sigma``.

    ``activation_checkpointing`` (an attribute, off at first) recomputes each block in the backward pass.
    ``generator`` decides the initial weights (torch's global one if None).
    """

    def __init__(self, config: DiTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width, grid = config.hidden_size, config.input_size // config.patch_size
        self.x_embedder = PatchEmbedder(config.in_channels, config.patch_size, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(num_labels(config), width) if config.num_classes else None
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(
            DiTBlock(width, config.num_heads, int(width * config.mlp_ratio)) for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, config.patch_size**2 * out_channels(config))
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights, as the paper starts: every block the identity (adaLN-Zero), the output zero."""
        for name, weight in self.named_parameters():
            if name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(weight)
            elif name.startswith("t_embedder"):
                nn.init.normal_(weight, std=0.02, generator=generator)
            elif name.startswith("y_embedder"):
                init_label_table(weight, generator)
            elif name != "pos_embed":
                # over the flattened kernel: a patch embedding is a linear layer of its latents
                nn.init.xavier_uniform_(weight.flatten(1), generator=generator)
        grid = self.config.input_size // self.config.patch_size
        self.pos_embed.copy_(torch.as_tensor(position_table(self.config.hidden_size, grid, grid)))

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Real[Tensor, " B"], y: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B out H W"]:
        """The prediction for noisy latents, float32.

        It holds eps in the first C channels, then the variance if that is learned.

        ``t``: time steps of training, 0..T-1, whole or fractional. ``y``: labels 0..num_classes-1, or
        num_classes, the null class; ignored by a model without classes.
        """
        self._check(x, y)
        with full_precision(x):
            tokens = self.x_embedder(x.float()) + self.pos_embed
            condition = self.t_embedder(t)
            if self.y_embedder is not None:
                condition = condition + self.y_embedder(y)
        for block in self.blocks:
            tokens = self._run(block, tokens, condition)
        with full_precision(x):
            return unpatchify(self.final_layer(tokens, condition), self.config.patch_size)

    def _run(self, block: nn.Module, tokens: Tensor, condition: Tensor) -> Tensor:
        if not self.activation_checkpointing:
            return block(tokens, condition)
        # Blocks draw nothing at random, so there is no generator state to keep.
        return cast(
            Tensor, checkpoint(block, tokens, condition, use_reentrant=False, preserve_rng_state=False)
        )

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        want = (self.config.in_channels, self.config.input_size, self.config.input_size)
        if tuple(x.shape[1:]) != want:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, this model takes [B, {', '.join(map(str, want))}]"
            )
        if y is None and self.y_embedder is not None:
            raise ValueError(f"this model has {self.config.num_classes} classes: labels y are needed")


class PatchEmbedder(nn.Module):
    """Each p x p square of the latents as one token, row by row."""

    def __init__(self, in_channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        # On CUDA, torch lets a convolution round its factors to TF32, and a matrix product only if set to.
        return self.as_product(x) if x.is_cuda else self.proj(x).flatten(2).transpose(1, 2)

    def as_product(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The same as one matrix product, in full precision everywhere."""
        squares = F.unfold(x, self.proj.kernel_size, stride=self.proj.stride)
        return F.linear(squares.transpose(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    """Time step to condition vector: cosines and sines of falling frequency, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_SIZE, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Real[Tensor, " B"]) -> Float[Tensor, "B D"]:
        return self.mlp(timestep_frequencies(t))


class LabelEmbedder(nn.Module):
    """A learned vector for each label, the null class among them."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(labels, width)

    def forward(self, y: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        # B N 3D -> B N 3 heads size -> three of B heads N size
        batch, num_tokens, width = tokens.shape
        heads = self.qkv(tokens).reshape(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU (tanh form) between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-Zero; figure 3 of DiT)."""

    def __init__(self, width: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, mlp_hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, tokens: Float[Tensor, "B N D"], condition: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B N D"]:
        with full_precision(tokens):
            modulation = self.adaLN_modulation(condition)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attn(self.norm1(tokens) * (1 + scale1) + shift1)
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """Tokens to patches of the output, modulated by the condition."""

    def __init__(self, width: int, patch_values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(
        self, tokens: Float[Tensor, "B N D"], condition: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B N P"]:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(tokens) * (1 + scale) + shift)


def with_bfloat16_products(model: DiT) -> DiT:
    """The same model, its weights changed in place.

    Those that autocast to bfloat16 would cast at every call are cast once.

    Under that autocast it gives the same bits as before, reads half as much and takes half the memory.
    """
    for block in model.blocks:
        for part in (block.attn, block.mlp):
            cast(nn.Module, part).to(torch.bfloat16)
    return model


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A region where autocast, if on, is off."""
    if x.is_meta:  # shapes alone have no precision, and autocast does not know them
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def timestep_frequencies(t: Real[Tensor, " B"]) -> Float[Tensor, "B F"]:
    """cos(t w_k), then sin(t w_k), with w_k = 10000^(-k / 128): width 256, float32."""
    half = FREQUENCY_SIZE // 2
    # In float32 as published: at t near 1000 the last bit of a frequency shows in the model's output.
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * k / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def unpatchify(patches: Float[Tensor, "B N P"], patch_size: int) -> Float[Tensor, "B out H W"]:
    """Tokens of a square grid, each p * p * channels values (channels fastest), as an image."""
    batch, tokens, values = patches.shape
    grid, channels = math.isqrt(tokens), values // patch_size**2
    # B (gh gw) (p p c) -> B c (gh p) (gw p)
    squares = patches.reshape(batch, grid, grid, patch_size, patch_size, channels).permute(0, 5, 1, 3, 2, 4)
    return squares.reshape(batch, channels, grid * patch_size, grid * patch_size)


def position_table(width: int, grid_height: int, grid_width: int) -> Float64[np.ndarray, "N D"]:
    """Fixed position embedding of a grid, row by row: sines and cosines of the column, then of the row."""
    rows, columns = np.divmod(np.arange(grid_height * grid_width), grid_width)
    return np.concatenate([_sincos(width // 2, columns), _sincos(width // 2, rows)], axis=1)


def _sincos(width: int, positions: Int[np.ndarray, " N"]) -> Float64[np.ndarray, "N W"]:
    frequencies = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def null_label(config: DiTConfig) -> int | None:
    """The null class's label, by which a model can be guided.

    None for one trained without labels, or never without.
    """
    return config.num_classes if num_labels(config) > config.num_classes else None


def num_labels(config: DiTConfig) -> int:
    """Rows of the label table: the classes, and the null class where labels are dropped in training."""
    return config.num_classes + (1 if config.class_dropout_prob > 0 and config.num_classes else 0)


def out_channels(config: DiTConfig) -> int:
    """Channels of the output: eps, and as many for the variance if it is learned."""
    return config.in_channels * (2 if config.learn_sigma else 1)


def init_label_table(
    table: Float[Tensor, "L D"], generator: torch.Generator | None = None, *, std: float = 0.02
) -> None:
    """Fresh label vectors, in place: N(0, std^2); 0.02 is the paper's."""
    nn.init.normal_(table, std=std, generator=generator)


def macs(config: DiTConfig) -> int:
    """Multiply-accumulates in one forward pass of one row, as published (the paper's Gflops).

    FLOPs are twice that.

    Matrix products, and the products with each block's two gates: so counted, every published figure is met.
    """
    width, tokens = config.hidden_size, (config.input_size // config.patch_size) ** 2
    mlp_hidden, patch = int(width * config.mlp_ratio), config.patch_size**2
    linears = tokens * width * (4 * width + 2 * mlp_hidden)
    attention = 2 * tokens**2 * width
    block = linears + attention + 6 * width**2 + 2 * tokens * width
    ends = tokens * width * patch * (config.in_channels + out_channels(config))
    condition = FREQUENCY_SIZE * width + width**2 + 2 * width**2
    return config.depth * block + ends + condition


LABEL_TABLE = "y_embedder.embedding_table.weight"
ADAPTABLE = frozenset({"num_classes", "class_dropout_prob", "input_size"})


def refuse_other_shapes(old: DiTConfig, new: DiTConfig) -> None:
    """ValueError, naming the fields, if weights of shape ``old`` can't start a model of shape ``new``."""
    fixed = [name for name in DiTConfig.model_fields if name not in ADAPTABLE]
    differing = [name for name in fixed if getattr(old, name) != getattr(new, name)]
    if differing:
        changes = ", ".join(f"{name} {getattr(old, name)} -> {getattr(new, name)}" for name in differing)
        raise ValueError(
            f"these weights fit no model with another {changes}; only classes and input_size can change"
        )


def adapt_state_dict(
    state: Mapping[str, Tensor],
    old: DiTConfig,
    new: DiTConfig,
    *,
    generator: torch.Generator | None = None,
    label_std: float = 0.02,
) -> dict[str, Tensor]:
    """The weights of a model of shape ``old`` as a start for one of shape ``new``, for fine-tuning.

    Another class count gets a fresh label table, N(0, label_std^2); a null class alone is added or removed;
    another input_size gets its position table; all else is kept, not copied. ValueError as
    `refuse_other_shapes` says.
    """
    refuse_other_shapes(old, new)
    adapted = dict(state)
    if old.input_size != new.input_size:
        grid = new.input_size // new.patch_size
        table = torch.as_tensor(position_table(new.hidden_size, grid, grid))
        adapted["pos_embed"] = table[None].to(state["pos_embed"].dtype)
    if (old.num_classes, num_labels(old)) != (new.num_classes, num_labels(new)):
        known = adapted.pop(LABEL_TABLE, torch.empty(0, new.hidden_size))
        if new.num_classes:
            kept = known[: new.num_classes] if old.num_classes == new.num_classes else known[:0]
            adapted[LABEL_TABLE] = _extended_label_table(kept, num_labels(new), generator, label_std)
    return adapted


def _extended_label_table(
    kept: Float[Tensor, "K D"], rows: int, generator: torch.Generator | None, std: float
) -> Float[Tensor, "L D"]:
    table = torch.empty(rows, kept.shape[1], dtype=kept.dtype)
    init_label_table(table, generator, std=std)
    table[: len(kept)] = kept
    return table
