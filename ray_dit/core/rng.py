"""Noise as a function of (seed, sample, step).

It is counter-based and knows no batch, worker, device count or generator.

Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in torch int64 arithmetic.
The key is the seed; the counter is (sample id, step, stream, block), so that different arguments never share
a block. The integer bits are the same on every machine; normals are computed from them in float64 and rounded
to float32: the same bits on one kind of machine, at most one unit in the last place apart elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import cast

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MAX_BLOCKS = 2**24
"""Blocks (4 normals, 2 uniforms) one sample may draw in one step: the counter has 24 bits left for their
number."""


class Stream(IntEnum):
    """What the noise is for: streams never share a bit. A number, once used, keeps its meaning."""

    SAMPLE = 0
    """Latents to start from (step 0) and the noise after step i of the sampler (step i + 1)."""
    TRAIN_T = 1
    TRAIN_NOISE = 2
    TRAIN_MOMENTS = 3
    TRAIN_MIRROR = 4
    TRAIN_LABEL_DROP = 5
    VAE_NOISE = 6
    VAE_MIRROR = 7
    INIT = 8
    LABELS = 9
    EVALUATE = 10
    VALIDATION = 11
    """Of a held-out row: its noise (step 0) and that of its latents (step 1)."""
    DATASET_LABELS = 12
    DATASET_SCALES = 13


def philox(
    counter: Sequence[int | Tensor], key: Sequence[int | Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four words of a block from its counter (4 words) and key (2 words).

    Words are values in [0, 2^32): int64 tensors that broadcast against each other, or numbers that hold for
    all, which no accelerator has to be told by a copy. The first and the last word of the counter are
    tensors.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product of two 32-bit words wraps in int64, yet all its 64 bits are right: mask them into halves.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (p1 >> 32 & MASK32) ^ c1 ^ k0, (p0 >> 32 & MASK32) ^ c3 ^ k1
        c1, c3 = p1 & MASK32, p0 & MASK32
        k0, k1 = k0 + WEYL[0] & MASK32, k1 + WEYL[1] & MASK32
    return cast("tuple[Tensor, Tensor, Tensor, Tensor]", (c0, c1, c2, c3))  # by the second round all are


def normal(
    seed: int | Int64[Tensor, " B"],
    sample_id: Int64[Tensor, " B"],
    step: int | Int64[Tensor, " B"],
    shape: Sequence[int],
    *,
    stream: Stream,
) -> Float32[Tensor, " B *shape"]:
    """Standard normal noise of each sample, [B, *shape] float32 on ``sample_id``'s device.

    A row depends on its own (seed, sample_id, step, stream) alone; seeds and ids may be any int64, steps lie
    in [0, 2^32). Box & Muller 1958, on 32-bit uniforms: values reach ±6.7. Raises ValueError for too large a
    shape and for tensors that are not int64.
    """
    blocks = {stream: normal_blocks(shape)}
    return to_normal(draw_words(seed, sample_id, step, blocks)[stream], shape)


def box_muller(words: Int64[Tensor, "B words"]) -> Float64[Tensor, "B words"]:
    """Two standard normals from each two 32-bit words.

    The first word gives their radius, the second the angle.
    """
    # The half keeps the logarithm's argument inside (0, 1): a word may be 0.
    radius = ((words[:, 0::2].double() + 0.5) / 2**32).log_().mul_(-2).sqrt_()
    angle = words[:, 1::2].double() * (2 * math.pi / 2**32)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)


def uniform(
    seed: int | Int64[Tensor, " B"],
    sample_id: Int64[Tensor, " B"],
    step: int | Int64[Tensor, " B"],
    shape: Sequence[int] = (),
    *,
    stream: Stream,
) -> Float64[Tensor, " B *shape"]:
    """Uniform numbers in [0, 1) of each sample, float64 with 53 random bits, the same on every machine.

    It reads the same bits as ``normal`` and ``integers`` of one stream: give each use a stream of its own.
    """
    blocks = {stream: uniform_blocks(shape)}
    return to_uniform(draw_words(seed, sample_id, step, blocks)[stream], shape)


def integers(
    seed: int | Int64[Tensor, " B"],
    sample_id: Int64[Tensor, " B"],
    step: int | Int64[Tensor, " B"],
    high: int,
    *,
    stream: Stream,
) -> Int64[Tensor, " B"]:
    """An integer in [0, high) for each sample, high at most 2^31; no value is likelier by more than 2^-33."""
    return to_integers(draw_words(seed, sample_id, step, {stream: 1})[stream], high)


def draw_words(
    seed: int | Tensor, sample_id: Tensor, step: int | Tensor, blocks: Mapping[Stream, int]
) -> dict[Stream, Int64[Tensor, "B _"]]:
    """Random words of each sample in [0, 2^32), of each stream so many blocks of four.

    Of these `to_normal`, `to_uniform` and `to_integers` make what `normal`, `uniform` and `integers` draw.
    Several streams at once take as many operations as one, and each operation costs an accelerator's host the
    same however much it computes.
    """
    for stream, count in blocks.items():
        if count > MAX_BLOCKS:
            raise ValueError(
                f"{count} blocks of noise a sample and step for {stream.name}: at most {MAX_BLOCKS} can be "
                "drawn"
            )
    for name, given in (("sample_id", sample_id), ("seed", seed), ("step", step)):
        if isinstance(given, Tensor) and given.dtype != torch.int64:
            # Narrower integers overflow in Philox' products and floats lose digits: other noise, silently.
            raise ValueError(f"{name} must be int64, not {given.dtype}")
    device = sample_id.device
    sample_id = sample_id.view(-1, 1)
    seed, step = (value.view(-1, 1) if isinstance(value, Tensor) else value for value in (seed, step))
    parts = [torch.arange(count, device=device) | (stream << 24) for stream, count in blocks.items()]
    counter = (sample_id & MASK32, sample_id >> 32 & MASK32, step & MASK32, torch.cat(parts))
    drawn = torch.stack(philox(counter, (seed & MASK32, seed >> 32 & MASK32)), dim=-1)
    each = torch.split(drawn, list(blocks.values()), dim=1)
    return {stream: part.flatten(1) for stream, part in zip(blocks, each, strict=True)}


def normal_blocks(shape: Sequence[int]) -> int:
    """Blocks that ``to_normal`` takes for a sample of this shape."""
    return -(-math.prod(shape) // 4)


def uniform_blocks(shape: Sequence[int]) -> int:
    """Blocks that ``to_uniform`` takes for a sample of this shape."""
    return -(-math.prod(shape) // 2)


def to_normal(words: Int64[Tensor, "B _"], shape: Sequence[int]) -> Float32[Tensor, " B *shape"]:
    """Standard normal numbers of ``normal_blocks`` of words."""
    return box_muller(words)[:, : math.prod(shape)].float().reshape(len(words), *shape)


def to_uniform(words: Int64[Tensor, "B _"], shape: Sequence[int] = ()) -> Float64[Tensor, " B *shape"]:
    """Numbers in [0, 1) of ``uniform_blocks`` of words."""
    bits = (words[..., 0::2] << 21) | (words[..., 1::2] >> 11)
    return (bits.double() / 2**53)[:, : math.prod(shape)].reshape(len(words), *shape)


def to_integers(words: Int64[Tensor, "B _"], high: int) -> Int64[Tensor, " B"]:
    """Numbers in [0, high) of one block of words; ValueError unless high lies in [1, 2^31]."""
    if not 0 < high <= 2**31:
        raise ValueError(f"high must lie in [1, 2^31], not {high}")
    return words[:, 0] * high + (words[:, 1] * high >> 32) >> 32
