"""How many floating-point operations a network takes: counted on shapes alone, without computing anything."""

from collections.abc import Callable
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
