"""What is found at the source of an import: weights, and what is known of the rest; without Ray.

Names and shapes are the foreign formats' affair (`formats.foreign`). This module finds the files, and keeps
what the source says apart from what is assumed. Writes nothing.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from ray_dit.config import DiTConfig, ImportConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import position_table
from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.folders.model import read_safetensors
from ray_dit.formats.foreign.diffusers_layout import (
    OWN_KEY,
    POSITION_TABLE,
    config_from_diffusers,
    from_diffusers,
    schedule_from_diffusers,
    unpadded,
    without_padding,
)
from ray_dit.formats.foreign.official import config_of
from ray_dit.formats.foreign.state_dicts import (
    StateDict,
    check_objective,
    check_plain,
    dit_weights,
    is_sit,
    told_classes,
)
from ray_dit.formats.foreign.torch_file import load_torch_file
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import CONFIG_KEY, VAE_FOLDER, ModelConfig
from ray_dit.pipeline import meta_dit
from ray_dit.storage.local_file import local_file
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from ray_dit.vae import WEIGHTS_NAME

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
OFFICIAL_DOWNSAMPLE = 8
OFFICIAL_GUIDANCE_CHANNELS = 3
SD_SCALING_FACTOR = 0.18215
PUBLISHED = ("DiT-XL-2-256x256", "DiT-XL-2-512x512", "DiT-XL-2-256", "DiT-XL-2-512")
"""Names of the published weights: the files', then those of the folders in diffusers' layout."""
PUBLISHED_LICENCE = "CC-BY-NC-4.0"
SIDE_KEY = "ray_dit.json"
"""In an exported pipeline: what diffusers has no place for, so that importing it again gives the same
model."""
SCHEDULE = frozenset({"num_train_timesteps", "beta_start", "beta_end"})
EVERYTHING = SCHEDULE | {
    "classes",
    "labels",
    "num_heads",
    "prediction",
    "vae",
    "shift",
    "scale",
    "guidance_channels",
}
"""What may be read from a source, told or assumed."""


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a source: weights under our names, and what is known of the rest."""

    name: str
    sha256: str
    config: ModelConfig
    state_dict: dict[str, Tensor]
    labels: Labels | None = None
    vae: str | None = None
    read: frozenset[str] = frozenset()
    """Which of `EVERYTHING` the source says itself."""
    where: str = ""
    """The source in words, with the keys and the prefix under which the weights were found."""


def read_source(config: ImportConfig) -> Checkpoint:
    """The checkpoint, before the command line's settings are laid over it.

    Raises NotFound, and UserError for what is no DiT's.
    """
    store, key, name = locate(config.source)
    if name.endswith((*TORCH_SUFFIXES, ".safetensors")):
        return _read_file(config, store, key, name)
    store = open_store(config.source)
    for place, pipeline in ((store.child("transformer"), store), (store, _pipeline_of(store))):
        settings = _json(place, CONFIG_KEY)
        if settings is not None and "format" in settings:
            raise UserError(f"{config.source} is a model folder of ray-dit already: use it as it is")
        if settings is not None:
            return _read_diffusers(place, settings, pipeline)
    raise NotFound(
        f"there is no checkpoint at {config.source}: give a .pt or .safetensors file, or a diffusers folder "
        "with transformer/config.json"
    )


def locate(uri: str) -> tuple[Store, str, str]:
    """The folder of an object, its key there, and its name: over http the key without a query."""
    query = ""
    if uri.partition("://")[0].lower() in ("http", "https"):
        uri, mark, query = uri.partition("#")[0].partition("?")
        query = mark + query.replace("/", "%2F")  # a slash would look like another folder
    folder, slash, name = uri.rpartition("/")
    return open_store(folder or slash or "."), name + query, name


def _pipeline_of(transformer: Store) -> Store | None:
    """The pipeline that a folder named `transformer` lies in, if it does.

    It says what weights alone don't.
    """
    folder, _, name = transformer.uri.rstrip("/").rpartition("/")
    if name != "transformer" or not folder:
        return None
    pipeline = open_store(folder)
    return pipeline if pipeline.head("model_index.json") is not None else None


# --- a file


def _read_file(config: ImportConfig, store: Store, key: str, name: str) -> Checkpoint:
    """A file with the official names, whatever holds them."""
    if is_sit(name):
        raise UserError(
            f"{config.source} is called as SiT's files are, which are trained for flow matching, and sampled "
            "as a DiT it would make noise: give a DiT checkpoint, or rename the file if it is one"
        )
    with _as_file(store, key, name) as path:
        data, said = _tensors_and_settings(path)
        sha256 = open_store(str(path.parent)).sha256(path.name)
        found = _weights_of(data, path)
    has_objective = check_objective(said, config.source)
    if "pos_embed.proj.weight" in found.tensors:
        raise UserError(
            f"{config.source} has diffusers' parameter names: give the folder with its {CONFIG_KEY}"
        )
    where = f"{config.source} ({found.place})" if found.place else config.source
    classes = len(named_labels(config.labels)) if config.labels else told_classes(said)
    model = config_of(found.tensors, where, num_heads=config.num_heads, num_classes=classes)
    read = {"prediction"} if has_objective else set[str]()
    read |= {"classes"} if classes == model.num_classes else set()
    settings = _as_published(model, name, sha256)
    return Checkpoint(name, sha256, settings, found.tensors, read=frozenset(read), where=where)


@contextmanager
def _as_file(store: Store, key: str, name: str) -> Generator[Path]:
    """The object as a file of this name."""
    if key == name:
        with local_file(store, key) as path:
            yield path
        return
    with tempfile.TemporaryDirectory() as scratch:  # a query may be longer than a file's name
        path = Path(scratch) / name
        with store.open_file(key) as source, open(path, "wb") as copy:
            shutil.copyfileobj(source, copy)
        yield path


def _tensors_and_settings(path: Path) -> tuple[Any, Any]:
    """What a file holds, and what in it may say how the weights were trained."""
    if not path.name.endswith(".safetensors"):
        data = load_torch_file(path)
        return data, data
    tensors = read_safetensors(open_store(str(path.parent)), path.name)
    with safe_open(path, "pt") as file:
        return tensors, file.metadata()


def _weights_of(data: Any, path: Path) -> StateDict:
    found = dit_weights(data, str(path))
    if found is None:
        raise UserError(
            f"{path} holds no weights (a state dict, or one under 'ema' or 'model'): give a DiT checkpoint"
        )
    check_plain(found.tensors, str(path))
    return found


def _as_published(model: DiTConfig, name: str, sha256: str) -> ModelConfig:
    """The settings of the published models, for weights that come with none.

    Only the published weights themselves are guided on some of the channels: their figures are with that.
    """
    published = re.sub(r"\.(pt|pth|bin|ckpt|safetensors)$", "", name) in PUBLISHED
    some = published and model.in_channels > OFFICIAL_GUIDANCE_CHANNELS
    return ModelConfig(
        model=model,
        latents=LatentsConfig(scale=SD_SCALING_FACTOR, image_size=model.input_size * OFFICIAL_DOWNSAMPLE),
        guidance_channels=OFFICIAL_GUIDANCE_CHANNELS if some else None,
        origin=f"{name} (sha256 {sha256})",
        licence=PUBLISHED_LICENCE if published else "",
    )


# --- a folder of diffusers


def _read_diffusers(store: Store, settings: dict[str, Any], pipeline: Store | None) -> Checkpoint:
    """A transformer folder of diffusers, and the pipeline around it if there is one."""
    where, name = store.uri, (pipeline or store).uri.rsplit("/", 1)[-1]
    model = config_from_diffusers(settings, where)
    weights, sha256 = _diffusers_weights(store)
    check_position_table(
        weights.get(POSITION_TABLE), model, where, "a DiT computes its table: it can't be imported"
    )
    state_dict = from_diffusers(weights, meta_dit(model).state_dict(), model, where)
    found = Checkpoint(
        name,
        sha256,
        _as_published(model, name, sha256),
        state_dict,
        read=frozenset({"classes", "num_heads"}),
        where=where,
    )
    found = _as_pipeline_says(found, settings, pipeline)
    shape = found.config.model
    return replace(
        found, state_dict=without_padding(state_dict, shape) | {"pos_embed": _position_table(shape)}
    )


def _as_pipeline_says(found: Checkpoint, settings: dict[str, Any], pipeline: Store | None) -> Checkpoint:
    side = None if pipeline is None else _json(pipeline, SIDE_KEY)
    if pipeline is None or side is None:
        found = _with_own_settings(found, settings, None if pipeline is None else _names(pipeline))
    if pipeline is None:
        return found
    vae = _json(pipeline, f"{VAE_FOLDER}/{CONFIG_KEY}")
    if vae is not None:
        found = replace(found, vae=pipeline.child(VAE_FOLDER).uri, read=found.read | {"vae"})
    if side is None:
        return _with_schedule_and_scale(found, pipeline, vae)
    config, labels = _side_config(side, pipeline.where(SIDE_KEY))
    return replace(found, config=config, labels=labels, read=found.read | EVERYTHING)


def _with_own_settings(
    found: Checkpoint, settings: dict[str, Any], names: tuple[str, ...] | None
) -> Checkpoint:
    """What our export left in config.json, and the number of classes that the label table shows.

    ``names`` are those of the pipeline, and win over the exported ones: they can be edited.
    """
    config, labels, read = found.config, None, found.read
    if OWN_KEY in settings:
        own, labels = _side_config(settings[OWN_KEY], f"{OWN_KEY} in {found.where}/{CONFIG_KEY}")
        model = config.model.model_copy(update={"class_dropout_prob": own.model.class_dropout_prob})
        config = own.model_copy(update={"model": model, "origin": config.origin})
        read = EVERYTHING - {"labels", "vae"}
    if names is not None and (labels is None or labels.names != names):
        labels = Labels(names)
    model = unpadded(config.model, found.state_dict, None if labels is None else len(labels))
    if labels is not None and len(labels) != model.num_classes:
        labels = None
    return replace(
        found,
        config=config.model_copy(update={"model": model}),
        labels=labels,
        read=read | {"labels"} if labels is not None else read,
    )


def _with_schedule_and_scale(found: Checkpoint, pipeline: Store, vae: dict[str, Any] | None) -> Checkpoint:
    """What a pipeline without our side file says: in its scheduler's settings, and in its VAE's."""
    scheduler = _json(pipeline, "scheduler/scheduler_config.json")
    scale = (vae or {}).get("scaling_factor") or SD_SCALING_FACTOR
    if not isinstance(scale, int | float):
        raise UserError(
            f"{pipeline.where(f'{VAE_FOLDER}/{CONFIG_KEY}')} has scaling_factor {scale!r}: restore it"
        )
    if vae is not None:
        latents = found.config.latents.model_copy(update={"shift": 0.0, "scale": float(scale)})
        read = found.read | {"shift"} | ({"scale"} if vae.get("scaling_factor") else set())
        found = replace(found, config=found.config.model_copy(update={"latents": latents}), read=read)
    if scheduler is None:
        return found
    diffusion = schedule_from_diffusers(scheduler, pipeline.uri)
    read = found.read - SCHEDULE | SCHEDULE & scheduler.keys()
    read |= {"prediction"} if "prediction_type" in scheduler else set()
    return replace(found, config=found.config.model_copy(update={"diffusion": diffusion}), read=read)


def _names(pipeline: Store) -> tuple[str, ...] | None:
    """The class names in model_index.json, None where they are not one for each number from 0."""
    names = (_json(pipeline, "model_index.json") or {}).get("id2label")
    if not isinstance(names, dict):
        return None
    numbers = [str(number) for number in range(len(names))]
    return tuple(str(names[number]) for number in numbers) if set(names) == set(numbers) else None


def _side_config(side: Any, where: str) -> tuple[ModelConfig, Labels]:
    try:
        config = ModelConfig.model_validate_json(json.dumps(side["config"]))
        labels = Labels.from_json(json.dumps(side["labels"]))
        if len(labels) != config.model.num_classes:
            raise ValueError(f"{len(labels)} labels for {config.model.num_classes} classes")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} can't be read ({first_message(error)}): restore or remove it") from error
    return config, labels


def _json(store: Store, key: str) -> dict[str, Any] | None:
    """A JSON object, None where there is none."""
    try:
        value = parse_json(store.get(key))
    except NotFound:
        return None
    except ValueError as error:
        raise UserError(f"{store.where(key)} is no JSON ({error}): restore it") from error
    return value if isinstance(value, dict) else None


def _diffusers_weights(store: Store) -> tuple[dict[str, Tensor], str]:
    """The transformer's weights and their hash: one file, or the shards that an index names."""
    if store.head(WEIGHTS_NAME) is not None:
        return read_safetensors(store, WEIGHTS_NAME), store.sha256(WEIGHTS_NAME)
    index = _json(store, f"{WEIGHTS_NAME}.index.json")
    if index is not None:
        return _sharded_weights(store, index)
    old_name = WEIGHTS_NAME.replace(".safetensors", ".bin")
    try:
        with local_file(store, old_name) as path:
            return _weights_of(load_torch_file(path), path).tensors, store.sha256(old_name)
    except NotFound:
        there = ", ".join(info.key for info in store.list("")) or "nothing"
        raise NotFound(
            f"there is neither {WEIGHTS_NAME} nor {old_name} in {store.uri}, but {there}: copy or save the "
            "transformer there again, without a variant"
        ) from None


def _sharded_weights(store: Store, index: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(_is_name(name) for name in shards.values()):
        raise UserError(
            f"{store.where(f'{WEIGHTS_NAME}.index.json')} has no weight_map of files beside it: restore it"
        )
    names = sorted(set(shards.values()))
    weights = {key: value for name in names for key, value in read_safetensors(store, name).items()}
    return weights, hashlib.sha256("".join(store.sha256(name) for name in names).encode()).hexdigest()


def _is_name(name: Any) -> bool:
    """Whether it names a file beside the one it stands in."""
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name) is not None


def check_position_table(table: Tensor | None, model: DiTConfig, where: str, advice: str) -> None:
    """UserError for a table that is not the computed one, to the last bits of another machine's sines."""
    computed = _position_table(model)
    if table is None or (
        table.shape == computed.shape and torch.allclose(table.float(), computed, rtol=0, atol=1e-6)
    ):
        return
    raise UserError(f"the position table (pos_embed) in {where} is not a DiT's, and {advice}")


def _position_table(model: DiTConfig) -> Float[Tensor, "1 N D"]:
    grid = model.input_size // model.patch_size
    return torch.from_numpy(position_table(model.hidden_size, grid, grid)).float()[None]


def named_labels(source: str) -> Labels:
    """The class names that ``--labels`` means: ImageNet's, or those in a file."""
    if source == "imagenet":
        return Labels.imagenet()
    store, key, name = locate(source)
    data = store.get(key)
    try:
        text = data.decode("utf-8-sig")
        return Labels.from_json(text) if name.endswith(".json") else Labels.from_lines(text)
    except ValueError as error:
        raise UserError(
            f"{source} can't be read ({first_message(error)}): give labels.json, or one name per line"
        ) from error
