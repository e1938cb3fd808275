"""`ray-dit import-checkpoint`: published DiT weights to model folders; without Ray.

Names and shapes are storage's affair (`official`, `diffusers_layout`). This module finds the files, checks
that weights and network fit, brings VAE and class names along, and writes what only changes if the source
does.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from ray_dit.config import DiTConfig, ImportConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import position_table
from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.folders.model import read_safetensors
from ray_dit.formats.foreign.diffusers_layout import (
    POSITION_TABLE,
    config_from_diffusers,
    from_diffusers,
    schedule_from_diffusers,
    without_padding,
)
from ray_dit.formats.foreign.official import config_of, plain_names, read_torch_file
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import (
    CONFIG_KEY,
    MODEL_STAGE,
    VAE_FOLDER,
    ModelConfig,
    model_card,
    model_objects,
)
from ray_dit.formats.weights import check_shapes
from ray_dit.ledger.results import Facts, Manifest
from ray_dit.pipeline import meta_dit
from ray_dit.results import ModelResult
from ray_dit.stages.fingerprint import open_job
from ray_dit.storage.local_file import local_file
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from ray_dit.vae import VAE, WEIGHTS_NAME, files_sha256, find_vae

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
OFFICIAL_VAE = "stabilityai/sd-vae-ft-ema"
OFFICIAL_DOWNSAMPLE = 8
OFFICIAL_GUIDANCE_CHANNELS = 3
SD_SCALING_FACTOR = 0.18215
PUBLISHED = {"DiT-XL-2-256x256.pt": "CC-BY-NC-4.0", "DiT-XL-2-512x512.pt": "CC-BY-NC-4.0"}
"""Licences of the published weight files, by file name."""
SIDE_KEY = "ray_dit.json"
"""In an exported pipeline: what diffusers has no place for, so that importing it again gives the same
model."""


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a source: weights under our names, and what is known of the rest."""

    name: str
    sha256: str
    config: ModelConfig
    state_dict: dict[str, Tensor]
    labels: Labels | None = None
    vae: str | None = None


def import_checkpoint(config: ImportConfig) -> Manifest[ModelResult]:
    """Writes the model folder; returns its manifest. The weights' values are those of the source, in float32.

    Raises UserError naming the parameters when they don't fit a DiT, and for a pickle with code in it.
    """
    found = _read(config)
    check_shapes(found.state_dict, meta_dit(found.config.model).state_dict(), config.source)
    labels = _labels(config.labels, found)
    model_config, vae_files = _with_vae(found.config, config.vae or found.vae, config.source)
    card = model_card(model_config, labels, title=f"{found.name}, imported by ray-dit")
    objects = model_objects(model_config, found.state_dict, labels, vae_files, card)
    inputs = {
        "source": found.sha256,
        "vae": files_sha256(vae_files) if vae_files else model_config.vae,
        "labels": hashlib.sha256(labels.to_json()).hexdigest(),
    }
    job = replace(open_job(config, MODEL_STAGE, inputs, resolved={"model": model_config}), repairing=True)
    markers = [job.put(key.replace("/", "-"), key, data, Facts()) for key, data in objects.items()]
    if manifest := job.whole(ModelResult):
        job.restore_markers(manifest)
        return manifest
    return job.finish(ModelResult(origin=model_config.origin), objects=markers)


def _read(config: ImportConfig) -> Checkpoint:
    if config.source.endswith((*TORCH_SUFFIXES, ".safetensors")):
        return _read_file(config, *locate(config.source))
    store = open_store(config.source)
    for place, pipeline in ((store.child("transformer"), store), (store, _pipeline_of(store))):
        settings = _json(place, CONFIG_KEY)
        if settings is not None and "format" in settings:
            raise UserError(f"{config.source} is a model folder of ray-dit already: use it as it is")
        if settings is not None:
            return _read_diffusers(config, place, settings, pipeline)
    raise NotFound(
        f"there is no checkpoint at {config.source}: give a .pt or .safetensors file, or a diffusers folder "
        "with transformer/config.json"
    )


def _pipeline_of(transformer: Store) -> Store | None:
    """The pipeline that a folder named `transformer` lies in, if it does.

    It says what weights alone don't.
    """
    folder, _, name = transformer.uri.rstrip("/").rpartition("/")
    if name != "transformer" or not folder:
        return None
    pipeline = open_store(folder)
    return pipeline if pipeline.head("model_index.json") is not None else None


def _read_file(config: ImportConfig, store: Store, name: str) -> Checkpoint:
    """A file with the official names, whatever holds them."""
    with local_file(store, name) as path:
        if name.endswith(".safetensors"):
            state_dict = plain_names(read_safetensors(open_store(str(path.parent)), path.name))
        else:
            state_dict = read_torch_file(path)
        sha256 = open_store(str(path.parent)).sha256(path.name)
    if "pos_embed.proj.weight" in state_dict:
        raise UserError(
            f"{config.source} has diffusers' parameter names: give the folder with its {CONFIG_KEY}"
        )
    num_classes = len(_named_labels(config.labels)) if config.labels else None
    model = config_of(state_dict, config.source, num_heads=config.num_heads, num_classes=num_classes)
    return Checkpoint(name, sha256, _as_asked(config, _as_published(model, name, sha256)), state_dict)


def _read_diffusers(
    config: ImportConfig, store: Store, settings: dict[str, Any], pipeline: Store | None
) -> Checkpoint:
    """A transformer folder of diffusers, and the pipeline around it if there is one."""
    where, name = store.uri, (pipeline or store).uri.rsplit("/", 1)[-1]
    model = config_from_diffusers(settings, where)
    weights, sha256 = _diffusers_weights(store)
    check_position_table(
        weights.get(POSITION_TABLE), model, where, "a DiT computes its table: it can't be imported"
    )
    state_dict = from_diffusers(weights, meta_dit(model).state_dict(), model, where)
    found, labels, vae = _as_published(model, name, sha256), None, None
    if pipeline is not None:
        found, labels, vae = _pipeline_around(pipeline, found)
    state_dict = without_padding(state_dict, found.model) | {"pos_embed": _position_table(found.model)}
    return Checkpoint(name, sha256, _as_asked(config, found), state_dict, labels, vae)


def _pipeline_around(pipeline: Store, found: ModelConfig) -> tuple[ModelConfig, Labels | None, str | None]:
    """What a pipeline says of its transformer: the model's settings, class names, and where its VAE is."""
    vae = _json(pipeline, f"{VAE_FOLDER}/{CONFIG_KEY}")
    vae_uri = pipeline.child(VAE_FOLDER).uri if vae else None
    side = _json(pipeline, SIDE_KEY)
    if side is not None:
        return *_side_config(side, pipeline.where(SIDE_KEY)), vae_uri
    scheduler = _json(pipeline, "scheduler/scheduler_config.json") or {}
    scale = (vae or {}).get("scaling_factor") or SD_SCALING_FACTOR
    if not isinstance(scale, int | float):
        raise UserError(
            f"{pipeline.where(f'{VAE_FOLDER}/{CONFIG_KEY}')} has scaling_factor {scale!r}: restore it"
        )
    changes: dict[str, Any] = {
        "diffusion": schedule_from_diffusers(scheduler, pipeline.uri),
        "latents": found.latents.model_copy(update={"scale": float(scale)}),
    }
    index = _json(pipeline, "model_index.json") or {}
    return (
        found.model_copy(update=changes),
        _id2label(index.get("id2label"), found.model.num_classes),
        vae_uri,
    )


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
            return read_torch_file(path), store.sha256(old_name)
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


def _as_published(model: DiTConfig, name: str, sha256: str) -> ModelConfig:
    """The settings of the published models, for weights that come with none."""
    return ModelConfig(
        model=model,
        latents=LatentsConfig(scale=SD_SCALING_FACTOR, image_size=model.input_size * OFFICIAL_DOWNSAMPLE),
        guidance_channels=OFFICIAL_GUIDANCE_CHANNELS
        if model.in_channels > OFFICIAL_GUIDANCE_CHANNELS
        else None,
        origin=f"{name} (sha256 {sha256})",
        licence=PUBLISHED.get(name, ""),
    )


def _as_asked(config: ImportConfig, found: ModelConfig) -> ModelConfig:
    """What the source says, but for what the command line says otherwise."""
    asked = config.model_dump(include={"guidance_channels", "licence"}, exclude_none=True)
    if asked.get("guidance_channels") == "all":
        asked["guidance_channels"] = None
    normalisation = config.model_dump(include={"scale", "shift"}, exclude_none=True)
    try:
        asked["diffusion"] = config.diffusion.over(found.diffusion)
        asked["latents"] = found.latents.model_dump() | normalisation
        return ModelConfig.model_validate(found.model_dump() | asked)
    except ValidationError as error:
        raise UserError(f"{config.source} can't have these settings: {first_message(error)}") from error


def _side_config(side: dict[str, Any], where: str) -> tuple[ModelConfig, Labels]:
    try:
        config = ModelConfig.model_validate_json(json.dumps(side["config"]))
        labels = Labels.from_json(json.dumps(side["labels"]))
        if len(labels) != config.model.num_classes:
            raise ValueError(f"{len(labels)} labels for {config.model.num_classes} classes")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} can't be read ({first_message(error)}): restore or remove it") from error
    return config, labels


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


def _id2label(names: Any, num_classes: int) -> Labels | None:
    numbers = [str(number) for number in range(num_classes)]
    if not isinstance(names, dict) or sorted(names) != sorted(numbers):
        return None
    return Labels(tuple(str(names[number]) for number in numbers))


def _labels(source: str | None, found: Checkpoint) -> Labels:
    num_classes = found.config.model.num_classes
    if source is None:
        guess = Labels.imagenet() if num_classes == 1000 else Labels.numbered(num_classes)
        return found.labels if found.labels is not None else guess
    labels = _named_labels(source)
    if len(labels) != num_classes:
        raise UserError(
            f"{source} names {len(labels)} classes, but {found.name} has {num_classes}: give their names"
        )
    return labels


def _named_labels(source: str) -> Labels:
    if source == "imagenet":
        return Labels.imagenet()
    store, name = locate(source)
    data = store.get(name)
    try:
        text = data.decode("utf-8-sig")
        return Labels.from_json(text) if name.endswith(".json") else Labels.from_lines(text)
    except ValueError as error:
        raise UserError(
            f"{source} can't be read ({first_message(error)}): give labels.json, or a name a line"
        ) from error


def _with_vae(config: ModelConfig, source: str | None, where: str) -> tuple[ModelConfig, dict[str, bytes]]:
    """The configuration with its VAE, and the VAE's files unless it is referred to by hub id."""
    channels = config.model.in_channels
    if source is None and channels != 4:
        raise UserError(
            f"{where} works on {channels} channels, which Stable Diffusion's VAE hasn't: give its VAE by "
            "--vae"
        )
    source = source or OFFICIAL_VAE
    if find_vae(source) is None:
        return config.model_copy(update={"vae": source}), {}
    vae = VAE.load(source)
    if vae.latent_channels != channels:
        raise UserError(
            f"the VAE {source} has {vae.latent_channels} channels, {where} works on {channels}: give its own"
        )
    size = config.model.input_size * vae.downsample
    latents = config.latents.model_copy(update={"image_size": size})
    return config.model_copy(update={"latents": latents, "vae": VAE_FOLDER}), vae.files()


def locate(uri: str) -> tuple[Store, str]:
    """The folder of an object, and its key there."""
    folder, slash, name = uri.rpartition("/")
    return open_store(folder or slash or "."), name
