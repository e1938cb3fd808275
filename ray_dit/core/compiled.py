"""A model compiled so that equal inputs give equal bits; knows nothing of what is compiled.

Shapes are static: one graph per shape, made at its first call. Nothing is chosen by timing, as another
process would then choose otherwise.
"""

from typing import cast

import torch
from torch import nn


def compile_static(model: nn.Module) -> nn.Module:
    """``model`` as TorchInductor compiles it; its parameters are those of ``model``.

    Its results differ from the uncompiled model's in the last bits.
    """
    import torch._inductor.config as inductor

    inductor.deterministic = True
    return cast(nn.Module, torch.compile(model, dynamic=False))  # pyright: ignore[reportUnknownMemberType]
