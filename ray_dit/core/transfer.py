"""What the host tells an accelerator: several small tensors in one copy that nobody waits for.

Knows nothing of what the tensors mean.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import UInt8
from torch import Tensor

ALIGNMENT = 16
"""Bytes; every tensor begins at a multiple of it, more than any element takes."""


def to_device(device: torch.device, values: Sequence[Tensor]) -> list[Tensor]:
    """These CPU tensors on ``device``, in order; on the CPU themselves.

    A copy of pageable memory makes the host wait for all that the accelerator has to do before. So the
    tensors are gathered in pinned memory, which torch keeps for as long as the copy runs.
    """
    if device.type == "cpu":
        return list(values)
    return unpack(pack(values, pinned=device.type == "cuda").to(device, non_blocking=True), values)


def pack(values: Sequence[Tensor], *, pinned: bool = False) -> UInt8[Tensor, " bytes"]:
    """The bytes of all values, one after the other."""
    packed = torch.empty(_places(values)[-1], dtype=torch.uint8, pin_memory=pinned)
    for value, place in zip(values, unpack(packed, values), strict=True):
        place.copy_(value)
    return packed


def unpack(packed: UInt8[Tensor, " bytes"], values: Sequence[Tensor]) -> list[Tensor]:
    """Views of what was packed, of the shapes and types of ``values``."""
    starts = _places(values)
    return [
        packed[start : start + value.numel() * value.element_size()].view(value.dtype).view(value.shape)
        for start, value in zip(starts, values, strict=False)
    ]


def _places(values: Sequence[Tensor]) -> list[int]:
    """Where each value begins, and where the last one ends."""
    sizes = (value.numel() * value.element_size() for value in values)
    return [0, *accumulate(math.ceil(size / ALIGNMENT) * ALIGNMENT for size in sizes)]
