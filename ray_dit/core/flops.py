"""How many floating-point operations a network takes: counted on shapes alone, without computing anything."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], Any]) -> int:
    """Operations of the matrix products, convolutions and attention in ``call``; a multiply-add is two.

    Run it on tensors of the device ``meta``, and it takes neither memory nor time.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


PEAKS: Mapping[str, tuple[float, float, float]] = {
    # words of the device's name: in bfloat16, in TF32, in float32; the more telling names first
    "H100 PCIe": (756e12, 378e12, 51.2e12),
    "H100 NVL": (835e12, 417e12, 60e12),
    "H100": (989.4e12, 494.7e12, 66.9e12),
    "H200 NVL": (835e12, 417e12, 60e12),
    "H200": (989.4e12, 494.7e12, 66.9e12),
    "A100": (312e12, 156e12, 19.5e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "A10": (125e12, 62.5e12, 31.2e12),
    "L4": (121e12, 60e12, 30.3e12),
}
"""Operations per second of dense matrix products, from the makers' data sheets."""


def peak_flops(device: str, *, bfloat16: bool, tf32: bool = False) -> float | None:
    """The most that a device of this name (torch's) does per second; None where it is not known."""
    known = next((peaks for name, peaks in PEAKS.items() if re.search(rf"\b{name}\b", device)), None)
    return None if known is None else known[0 if bfloat16 else 1 if tf32 else 2]
