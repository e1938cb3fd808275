"""A model compiled so that equal inputs give equal bits; knows nothing of what is compiled.

Shapes are static: one graph per shape, made at its first call. Nothing is chosen by timing, as another
process would then choose otherwise.
"""

from typing import cast

import torch
from torch import nn

MAX_SHAPES = 64


def compile_static(model: nn.Module) -> nn.Module:
    """``model`` as TorchInductor compiles it; its parameters are those of ``model``.

    Its results differ from the uncompiled model's in the last bits. It raises where it is called with more
    than ``MAX_SHAPES`` shapes.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    inductor.deterministic = True
    # or it would go on uncompiled, with other bits, once it has met more shapes than these
    dynamo.fail_on_recompile_limit_hit = True
    dynamo.recompile_limit = MAX_SHAPES
    return cast(nn.Module, torch.compile(model, dynamic=False))  # pyright: ignore[reportUnknownMemberType]
