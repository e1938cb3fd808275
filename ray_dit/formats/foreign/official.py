"""Official DiT checkpoints: a model's shape, seen from its weights.

Knows the published parameter names and nothing of files, networks or folders.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from ray_dit.config import PRESET_SIZES, DiTConfig
from ray_dit.errors import UserError, first_message
from ray_dit.formats.foreign.state_dicts import PATCHES

LABEL_TABLE = "y_embedder.embedding_table.weight"


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
            mlp_ratio=_mlp_ratio(mlp_hidden, hidden_size),
            num_classes=labels - null_class,
            class_dropout_prob=0.1 if null_class or not labels else 0.0,
            learn_sigma=patch_values == 2 * in_channels * patch_size**2,
        )
    except ValueError as error:
        raise UserError(
            f"the weights in {where} are of no DiT ({first_message(error)}): give a DiT checkpoint"
        ) from error


def _mlp_ratio(hidden: int, width: int) -> float:
    """The least ratio from which the network makes this width of the MLP, ``int(width * ratio)``."""
    ratio = hidden / width
    while int(width * ratio) < hidden:  # the quotient was rounded down
        ratio = math.nextafter(ratio, math.inf)
    return ratio


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
