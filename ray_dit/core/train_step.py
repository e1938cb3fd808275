"""The pure pieces of a training step: learning rate, optimizer, averaged weights.

Knows nothing of data, workers, checkpoints or which model is trained. ``step`` counts optimizer steps from 0;
a function of it gives step s the same on every worker and after every resume.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ray_dit.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step ``step`` in 0..total_steps-1.

    Linear warm-up reaches the peak at the last of ``warmup_steps``; then constant, or half a cosine
    (Loshchilov & Hutter 2017) that would be zero at ``total_steps``, so that the last step still moves.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is not one of {total_steps}")
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over the parameters that are trained, so not DiT's fixed pos_embed.

    The caller sets each step's ``learning_rate`` in ``param_groups`` and clips gradients.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # One implementation on every device, chosen here: torch's own choice depends on where the parameters are,
    # and another implementation rounds otherwise. Fused needs no temporary copies of the parameters.
    return torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of the gradient over all parameters, a scalar where they are."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def clip_gradients(model: nn.Module, norm: Tensor, max_norm: float) -> None:
    """Scales a gradient of norm ``norm`` down to ``max_norm`` if it is longer, in place."""
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)


def ema_decay(step: int, max_decay: float) -> float:
    """Decay of the averaged weights after ``step``, warmed up so that early weights are soon forgotten."""
    return min(max_decay, (1 + step) / (10 + step))


def make_ema(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights at the start: float32 copies of ``params`` (a model's state_dict)."""
    return {name: param.detach().to(torch.float32, copy=True) for name, param in params.items()}


@torch.no_grad()
def update_ema(ema: Mapping[str, Tensor], params: Mapping[str, Tensor], decay: float) -> None:
    """ema = decay * ema + (1 - decay) * params, in place, float32.

    ValueError unless both name the same tensors.
    """
    if ema.keys() != params.keys():
        raise ValueError(
            f"averaged and trained weights differ in {', '.join(sorted(ema.keys() ^ params.keys()))}"
        )
    averages = list(ema.values())
    values = [params[name].detach().to(average.dtype) for name, average in ema.items()]
    # By lerp, which keeps equal values bitwise equal, such as the fixed position table; on a GPU all tensors
    # in a few kernels.
    get_ema_multi_avg_fn(decay)(averages, values, 0)
