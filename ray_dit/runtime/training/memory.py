"""How much memory a worker takes with some settings, and what to change where it has not got it.

Weights, their average, the optimizer's moments and gradients are exact. What is kept for the backward pass is
counted on shapes (`core/memory.py`), uncompiled; a compiled model keeps less.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from ray_dit.config import DiTConfig, TrainConfig, TrainingConfig
from ray_dit.core.dit import DiT
from ray_dit.core.memory import Kept, dit_kept_bytes
from ray_dit.core.units import bytes_text
from ray_dit.errors import UserError

T = TypeVar("T")
FILLED = 0.9
"""Share of a device's memory that is counted on: the rest goes to its context, workspaces and gaps."""


def worker_memory(config: TrainingConfig, parameters: int, kept: Kept, *, average: bool) -> dict[str, int]:
    """Bytes that each part takes in a worker.

    ``parameters``: how many are trained; ``kept``: for the backward pass; ``average``: whether the weights
    are averaged.
    """
    weights = 4 * parameters
    workers = config.working(config.worker_range[0])  # of a range the fewest, which have the largest shares
    return {
        "weights": weights,
        "averaged weights": weights if average else 0,
        "moments": 2 * weights,
        "gradients": weights * (2 if workers > 1 else 1),  # DDP exchanges a copy of them
        "activations": kept.of(config.batch_size // (workers * config.batches_per_step)),
    }


def dit_memory(config: TrainConfig, shape: DiTConfig) -> dict[str, int]:
    """``worker_memory`` of a DiT of this shape."""
    bfloat16 = config.precision == "bfloat16"
    kept = dit_kept_bytes(shape, bfloat16=bfloat16, recompute=config.activation_checkpointing)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in DiT(shape).parameters())
    return worker_memory(config, parameters, kept, average=True)


def explain_out_of_memory(
    error: BaseException,
    config: TrainingConfig,
    memory: Callable[[TrainingConfig], dict[str, int]],
    available: int | None,
) -> UserError | None:
    """The error for the user, with a setting that would fit; None where memory is not what was short.

    ``memory``: of a worker with other settings. ``available``: bytes of its device, None where that is not
    known; then a setting fits that takes half as much for activations.
    """
    if not is_out_of_memory(error):
        return None
    needed = memory(config)
    total = sum(needed.values())
    has = f"it has {bytes_text(available)}, and " if available is not None else ""
    said = f"a worker ran out of memory: {has}these settings need about {bytes_text(total)}"
    # where they should have fitted, the count was too low, or others use the device
    room = FILLED * available if available is not None and total > FILLED * available else math.inf
    halved = needed["activations"] // 2
    for change, other in _smaller(config):
        parts = memory(other)
        fits = sum(parts.values()) <= room if room < math.inf else parts["activations"] <= halved
        if fits:
            about = bytes_text(sum(parts.values()))
            return UserError(
                f"{said}. With {change} it would be about {about}; that gives other last bits, so where "
                "checkpoints were made already begin in another output folder"
            )
    return UserError(
        f"{said}, and no setting makes it small enough: take a smaller --model.preset, more workers or "
        "devices with more memory"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _smaller(config: TrainingConfig) -> Iterator[tuple[str, TrainingConfig]]:
    """Settings that take less memory, as options and as a configuration, the mildest first."""
    share = config.batch_size // config.working(config.worker_range[0])
    parts = [count for count in range(config.batches_per_step, share + 1) if share % count == 0]
    steps: list[dict[str, Any]] = [{}]
    if getattr(config, "activation_checkpointing", None) is False:
        steps.append({"activation_checkpointing": True})
    if config.precision == "float32":
        steps += [step | {"precision": "bfloat16"} for step in steps]
    for step in sorted(steps, key=len):
        for count in parts:
            change = step | ({"batches_per_step": count} if count > config.batches_per_step else {})
            if change:
                yield _options(change), config.model_copy(update=change)


def _options(change: dict[str, Any]) -> str:
    words = (
        "--" + name.replace("_", "-") + ("" if value is True else f" {value}")
        for name, value in change.items()
    )
    return " ".join(words)


def explains_memory(train: Callable[..., T]) -> Callable[..., T]:
    """Makes an error of memory, of a ``train(task, config, job, *, device, ...)``, one for the user."""

    @functools.wraps(train)
    def explained(task: Any, config: TrainingConfig, *rest: Any, device: torch.device, **more: Any) -> T:
        try:
            return train(task, config, *rest, device=device, **more)
        except (MemoryError, RuntimeError) as error:
            available = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
            explanation = explain_out_of_memory(error, config, task.memory, available)
            if explanation is None:
                raise
            raise explanation from error

    return explained
