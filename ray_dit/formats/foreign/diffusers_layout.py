"""DiT weights and settings as diffusers' DiTPipeline has them, from and to ours.

Knows names and shapes, no network.

diffusers copies both embedders into every block, splits qkv, and recomputes the position table. Its model is
not quite the published one: docs/checkpoints.md says what differs and by how much.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ray_dit.config import DiffusionConfig, DiTConfig
from ray_dit.errors import UserError, first_message
from ray_dit.formats.foreign.official import LABEL_TABLE
from ray_dit.formats.weights import check_shapes

NUM_CLASSES = 1000
"""DiTPipeline takes label 1000 for the null class, whatever the model: smaller label tables are padded to
it."""

EMBEDDERS = {
    "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    LABEL_TABLE: "class_embedder.embedding_table.weight",
}
"""Ours to what each block has under ``norm1.emb``."""
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
FIXED = {"norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True}
"""Settings of diffusers' transformer without which it is no DiT."""
POSITION_TABLE = "pos_embed.pos_embed"
"""diffusers computes it; some files hold it all the same."""
OWN_KEY = "_ray_dit"
"""In transformer/config.json: settings that diffusers has no place for. What begins with an underscore it
hands on, unread, when it opens a model and saves it again; of other files of our own it knows nothing."""


def _renamed(depth: int) -> Iterator[tuple[str, str]]:
    """Every parameter that only has another name: ours, theirs."""
    layers = dict(ENDS)
    for i in range(depth):
        layers |= {f"blocks.{i}.{ours}": f"transformer_blocks.{i}.{theirs}" for ours, theirs in BLOCK.items()}
    for ours, theirs in layers.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}"


def _qkv(block: int, kind: str) -> tuple[str, list[str]]:
    """The fused projection of a block, and diffusers' three."""
    theirs = [f"transformer_blocks.{block}.attn1.to_{part}.{kind}" for part in "qkv"]
    return f"blocks.{block}.attn.qkv.{kind}", theirs


def to_diffusers(state_dict: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """Our weights under diffusers' names, no two tensors sharing memory; the position table is left out.

    Raises UserError for a shape that diffusers' model can't have.
    """
    _check_exportable(config)
    return _under_their_names({**state_dict, LABEL_TABLE: _padded_label_table(state_dict, config)}, config)


def _under_their_names(state_dict: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    theirs = {name: state_dict[ours] for ours, name in _renamed(config.depth)}
    for block in range(config.depth):
        for kind in ("weight", "bias"):
            fused, parts = _qkv(block, kind)
            theirs |= zip(parts, (part.clone() for part in state_dict[fused].chunk(3)), strict=True)
        for ours, name in EMBEDDERS.items():
            theirs[f"transformer_blocks.{block}.norm1.emb.{name}"] = state_dict[ours].clone()
    return theirs


def _check_exportable(config: DiTConfig) -> None:
    if config.mlp_ratio != 4:
        raise UserError(
            f"diffusers' DiT has mlp_ratio 4, not {config.mlp_ratio:g}: export as official instead"
        )
    if config.num_classes > NUM_CLASSES:
        raise UserError(
            f"DiTPipeline takes label {NUM_CLASSES} for the null class, but this model has "
            f"{config.num_classes} classes: export as official instead"
        )


def _padded_label_table(state_dict: Mapping[str, Tensor], config: DiTConfig) -> Tensor:
    """A label table with the null class where DiTPipeline looks for it: rows between repeat it.

    Without a null class the rows are zero, and so are all where there are no classes, which adds nothing.
    """
    labels = state_dict.get(LABEL_TABLE, torch.zeros(0, config.hidden_size))
    classes, null = labels[: config.num_classes], labels[config.num_classes :]
    rows = NUM_CLASSES + 1 - len(classes)
    return torch.cat(
        [classes, null.expand(rows, -1) if len(null) else classes.new_zeros(rows, labels.shape[1])]
    )


def transformer_config(config: DiTConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """transformer/config.json of diffusers; ``own`` comes back when the folder is read."""
    return {
        OWN_KEY: dict(own),
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels * (2 if config.learn_sigma else 1),
        "num_layers": config.depth,
        "sample_size": config.input_size,
        "patch_size": config.patch_size,
        "num_embeds_ada_norm": NUM_CLASSES,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,  # its default, 1e-5, is not what DiT was trained with
        **FIXED,
    }


def scheduler_config(config: DiffusionConfig) -> dict[str, Any]:
    """scheduler/scheduler_config.json of diffusers: DDIM on our schedule."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": "linear",
        "clip_sample": False,
        "prediction_type": "epsilon",
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    }


def schedule_from_diffusers(settings: Mapping[str, Any], where: str) -> DiffusionConfig:
    """Our schedule from scheduler/scheduler_config.json, {} for none.

    UserError for one that is not linear in beta.
    """
    needed = {
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "use_flow_sigmas": False,
    }
    there = needed | dict(settings)
    wrong = [f"{key} is {there[key]!r}" for key, value in needed.items() if there[key] != value]
    kind = settings.get("_class_name", "DDIMScheduler")
    if kind not in ("DDIMScheduler", "DDPMScheduler") and "beta_schedule" not in settings:
        wrong.append(f"{kind} has no betas")  # of flow matching, or continuous
    if wrong:
        raise UserError(
            f"the scheduler in {where} is not the one a DiT is trained with ({', '.join(wrong)}): only "
            "linear betas and predictions of eps can be imported"
        )
    names = ("num_train_timesteps", "beta_start", "beta_end")
    try:
        return DiffusionConfig(**{name: settings[name] for name in names if name in settings})
    except ValueError as error:
        raise UserError(
            f"the scheduler in {where} can't be used ({first_message(error)}): restore "
            "scheduler/scheduler_config.json"
        ) from error


def config_from_diffusers(settings: Mapping[str, Any], where: str) -> DiTConfig:
    """Our shape of a model from transformer/config.json; UserError if it is no DiT."""
    if settings.get("_class_name") not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise UserError(
            f"{where} holds {settings.get('_class_name', 'something else')}, not a DiT: give a DiT's folder"
        )
    wrong = [
        f"{key} is {settings.get(key)!r}" for key, value in FIXED.items() if settings.get(key, value) != value
    ]
    if settings.get("interpolation_scale") not in (None, 1):
        wrong.append(f"interpolation_scale is {settings['interpolation_scale']!r}")
    if wrong:
        raise UserError(f"the transformer in {where} is no DiT ({', '.join(wrong)}): give a DiT's folder")
    channels, heads = settings.get("in_channels", 4), settings.get("num_attention_heads", 16)
    try:
        if settings.get("num_embeds_ada_norm", NUM_CLASSES) < 1:
            raise ValueError("num_embeds_ada_norm is below 1")
        return DiTConfig(
            input_size=settings.get("sample_size", 32),
            patch_size=settings.get("patch_size", 2),
            in_channels=channels,
            hidden_size=heads * settings.get("attention_head_dim", 72),
            depth=settings.get("num_layers", 28),
            num_heads=heads,
            num_classes=settings.get("num_embeds_ada_norm", NUM_CLASSES),
            learn_sigma=settings.get("out_channels") == 2 * channels,
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the transformer in {where} is no DiT ({first_message(error)}): give a DiT's folder"
        ) from error


def from_diffusers(
    theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: DiTConfig, where: str
) -> dict[str, Tensor]:
    """diffusers' weights under our names, without the position table.

    The inverse of `to_diffusers` but for padding.

    ``config`` is as `config_from_diffusers` read it, and ``expected`` has the names and shapes of our model
    of that shape. Raises UserError for parameters that are missing, unknown or of another shape, and for
    embedders that differ between blocks.
    """
    rest = {name: weight for name, weight in theirs.items() if name != POSITION_TABLE}
    check_shapes(rest, _under_their_names(expected, config), where)
    ours = {name: rest[their_name] for name, their_name in _renamed(config.depth)}
    for block in range(config.depth):
        for kind in ("weight", "bias"):
            fused, parts = _qkv(block, kind)
            ours[fused] = torch.cat([rest[part] for part in parts])
    return ours | {
        name: _common(rest, their_name, config.depth, where) for name, their_name in EMBEDDERS.items()
    }


def _common(rest: Mapping[str, Tensor], name: str, depth: int, where: str) -> Tensor:
    """The embedder weight that all blocks share."""
    copies = [rest[f"transformer_blocks.{block}.norm1.emb.{name}"] for block in range(depth)]
    for block, copy in enumerate(copies):
        if not torch.equal(copy, copies[0]):
            raise UserError(
                f"the blocks of the transformer in {where} have different embedders ({name} of block "
                f"{block}), which a DiT shares: it was trained further in diffusers and can't be imported"
            )
    return copies[0]


def unpadded(config: DiTConfig, state_dict: Mapping[str, Tensor], num_names: int | None) -> DiTConfig:
    """``config`` with the classes that the label table really has; the inverse of `to_diffusers`' padding.

    Rows at the end that equal the last one are the null class and its padding; where they are zero there is
    no null class. ``num_names`` says how many of them are classes all the same, where names are known.
    """
    table = state_dict[LABEL_TABLE]
    others = (table != table[-1]).any(1).nonzero()
    has_null = bool(table[-1].any())
    shown = int(others[-1]) + 1 if len(others) else int(has_null)
    num_classes = min(max(shown, num_names or 0), config.num_classes)
    dropout = config.class_dropout_prob
    if num_classes:
        dropout = (dropout or DiTConfig().class_dropout_prob) if has_null else 0.0
    return config.model_copy(update={"num_classes": num_classes, "class_dropout_prob": dropout})


def without_padding(state_dict: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The weights with a label table of the model's own classes, where `to_diffusers` made it longer."""
    ours = dict(state_dict)
    table = ours.pop(LABEL_TABLE)
    if config.num_classes:
        null = table[-1:] if config.class_dropout_prob > 0 else table[:0]
        ours[LABEL_TABLE] = torch.cat([table[: config.num_classes], null])
    return ours
