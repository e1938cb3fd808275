"""Official DiT checkpoints.

Torch files are read without running what is in them, and a model's shape is seen from its weights.

Knows the published parameter names and nothing of networks or folders.
"""

import argparse
import errno
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ray_dit.config import PRESET_SIZES, DiTConfig
from ray_dit.errors import UserError, first_message

WRAPPERS = ("ema", "model", "state_dict")
"""Keys under which training code puts the weights, the preferred first: the averaged ones are what was
published."""
LABEL_TABLE = "y_embedder.embedding_table.weight"
PATCHES = "x_embedder.proj.weight"
WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The weights in a ``.pt`` or ``.bin`` file: a bare state dict, or one under "ema" (first) or "model".

    Only tensors and plain data are unpickled, and the ``argparse.Namespace`` that training code leaves
    beside them. Raises UserError for a pickle with any other code, naming it, and for a file without weights.
    """
    return _weights(_load(path), path)


def _load(path: Path) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            # Mapped, so that the optimizer state beside the weights is never read; old files can't be.
            return torch.load(path, mmap=_is_zip(path), **options)
        except pickle.UnpicklingError as error:
            raise UserError(_refusal(path, error)) from error
        except Exception as error:  # whatever a damaged file makes torch stumble over
            if (
                isinstance(error, OSError) and error.errno != errno.EINVAL
            ):  # a lying offset is no place to seek
                raise
            reason = first_message(error).rstrip(".")
            raise UserError(
                f"{path} is no torch checkpoint ({reason}): give the .pt file as published"
            ) from error


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _refusal(path: Path, error: Exception) -> str:
    names = sorted(set(re.findall(r"GLOBAL (\w+(?:\.\w+)*)", str(error))))
    if not names:
        return f"{path} is no torch checkpoint: give the .pt file as published"
    return (
        f"{path} holds code, not only weights ({', '.join(names)}), and none of it was run: "
        "if you trust it, write its weights as safetensors with the program that made it, and import those"
    )


def _weights(data: Any, path: Path) -> dict[str, Tensor]:
    candidates = [
        {str(name): value for name, value in _entries(part).items() if isinstance(value, Tensor)}
        for part in (*(_entries(data).get(key) for key in WRAPPERS), data)
    ]
    candidates = [plain_names(weights) for weights in candidates if weights]
    if name := next((name for weights in candidates for name in weights if _is_larger(weights[name])), None):
        raise UserError(
            f"{path} is no DiT checkpoint ({name} repeats a few numbers): give the file as published"
        )
    if not candidates:
        raise UserError(
            f"{path} holds no weights (a state dict, or one under 'ema' or 'model'): give a DiT checkpoint"
        )
    # An averaging wrapper may keep a few tensors of its own under "ema" and the weights elsewhere.
    return next((weights for weights in candidates if PATCHES in weights), candidates[0])


def _is_larger(tensor: Tensor) -> bool:
    """Whether a tensor has more numbers than its file stores: a few bytes may stand for terabytes."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False  # check_shapes refuses it
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without what DDP ("module.") and torch.compile ("_orig_mod.") put first, in any order."""
    return {WRAPPED.sub("", name): value for name, value in weights.items()}


def _entries(data: Any) -> Mapping[Any, Any]:
    return cast(Mapping[Any, Any], data) if isinstance(data, Mapping) else {}


def config_of(
    state_dict: Mapping[str, Tensor],
    where: str,
    *,
    num_heads: int | None = None,
    num_classes: int | None = None,
) -> DiTConfig:
    """The shape of the model these weights belong to, seen from a few of them.

    The number of heads leaves no trace in the weights: it comes from the preset of that width and depth, or
    from ``num_heads``. One row of the label table is the null class, unless ``num_classes`` says that all are
    classes. Raises UserError naming the parameters that are missing or of an unknown shape.
    """
    hidden_size, in_channels, patch_size, _ = _shape_of(state_dict, PATCHES, 4, where)
    _, num_tokens, _ = _shape_of(state_dict, "pos_embed", 3, where)
    patch_values, _ = _shape_of(state_dict, "final_layer.linear.weight", 2, where)
    mlp_hidden, _ = _shape_of(state_dict, "blocks.0.mlp.fc1.weight", 2, where)
    labels = _shape_of(state_dict, LABEL_TABLE, 2, where)[0] if LABEL_TABLE in state_dict else 0
    blocks = {name.split(".")[1] for name in state_dict if name.startswith("blocks.")}
    numbers = [int(block) for block in blocks if block.isdecimal() and len(block) <= 4]
    depth = 1 + max(numbers)  # and not how many there are: one that is missing will be named
    null_class = labels > 0 and labels != num_classes
    try:
        return DiTConfig(
            input_size=math.isqrt(num_tokens) * patch_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads or _preset_heads(hidden_size, depth, where),
            mlp_ratio=mlp_hidden / hidden_size,
            num_classes=labels - null_class,
            class_dropout_prob=0.1 if null_class or not labels else 0.0,
            learn_sigma=patch_values == 2 * in_channels * patch_size**2,
        )
    except ValueError as error:
        raise UserError(
            f"the weights in {where} are of no DiT ({first_message(error)}): give a DiT checkpoint"
        ) from error


def _shape_of(state_dict: Mapping[str, Tensor], name: str, dimensions: int, where: str) -> tuple[int, ...]:
    if name not in state_dict:
        raise UserError(f"the weights in {where} are of no DiT (missing: {name}): give a DiT checkpoint")
    shape = tuple(state_dict[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise UserError(
            f"the weights in {where} are of no DiT ({name} has shape {shape}): give a DiT checkpoint"
        )
    return shape


def _preset_heads(hidden_size: int, depth: int, where: str) -> int:
    for width, blocks, heads in PRESET_SIZES.values():
        if (width, blocks) == (hidden_size, depth):
            return heads
    raise UserError(
        f"the weights in {where} ({hidden_size} wide, {depth} blocks) are of no preset, and the number of "
        "attention heads can't be seen from weights: give it with --num-heads"
    )
