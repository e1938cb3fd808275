"""What TorchInductor has compiled in this process."""

from typing import Any


def compiled_graphs() -> int:
    """How many graphs so far."""
    from torch._dynamo.utils import counters

    stats: Any = counters["stats"]
    return stats["unique_graphs"]
