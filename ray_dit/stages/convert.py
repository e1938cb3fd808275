"""`ray-dit import-checkpoint` and `ray-dit export`: published DiT weights to model folders and back; without Ray.

Names and shapes are storage's affair (`official`, `diffusers_layout`). This module finds the files, checks that weights
and network fit, brings VAE and class names along, and writes what only changes if the source does.
"""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from ray_dit.config import DiffusionConfig, DiTConfig, ExportConfig, ImportConfig
from ray_dit.core.dit import position_table
from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.pipeline import meta_dit
from ray_dit.stages.fingerprint import parts
from ray_dit.storage.diffusers_layout import (
    config_from_diffusers,
    from_diffusers,
    schedule_from_diffusers,
    scheduler_config,
    to_diffusers,
    transformer_config,
)
from ray_dit.storage.job import Job, Manifest, canonical
from ray_dit.storage.labels import Labels
from ray_dit.storage.official import config_of, read_torch_file
from ray_dit.storage.pretrained import (
    CONFIG_KEY,
    MODEL_STAGE,
    VAE_FOLDER,
    LatentsConfig,
    ModelConfig,
    ModelFolder,
    check_shapes,
    model_card,
    model_objects,
    read_model,
    read_safetensors,
)
from ray_dit.storage.store import CHUNK, Store
from ray_dit.vae import VAE, WEIGHTS_NAME, files_sha256, find_vae

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
OFFICIAL_VAE = "stabilityai/sd-vae-ft-ema"
OFFICIAL_DOWNSAMPLE = 8
SD_SCALING_FACTOR = 0.18215
PUBLISHED = {"DiT-XL-2-256x256.pt": "CC-BY-NC-4.0", "DiT-XL-2-512x512.pt": "CC-BY-NC-4.0"}
"""Licences of the published weight files, by file name."""
SIDE_KEY = "ray_dit.json"
"""In an exported pipeline: what diffusers has no place for, so that importing it again gives the same model."""


@dataclass(frozen=True)
class Checkpoint:
    """What was found at a source: weights under our names, and what is known of the rest."""

    name: str
    sha256: str
    config: ModelConfig
    state_dict: dict[str, Tensor]
    labels: Labels | None = None
    vae: str | None = None


def import_checkpoint(config: ImportConfig) -> Manifest:
    """Writes the model folder; returns its manifest. The weights' values are those of the source, in float32.

    Raises UserError naming the parameters when they don't fit a DiT, and for a pickle with code in it.
    """
    found = _read(config)
    check_shapes(found.state_dict, meta_dit(found.config.model).state_dict(), config.source)
    labels = _labels(config.labels, found)
    model_config, vae_files = _with_vae(found.config, config.vae or found.vae, config.source)
    card = model_card(model_config, labels, title=f"{found.name}, imported by ray-dit")
    objects = model_objects(model_config, found.state_dict, labels, vae_files, card)
    inputs = {"source": found.sha256, "vae": files_sha256(vae_files) if vae_files else model_config.vae}
    fingerprint = parts(config, inputs)
    job = Job.open(
        Store.open(config.output), MODEL_STAGE, fingerprint, accept_fingerprint=config.accept_fingerprint
    )
    markers = [job.put(key.replace("/", "-"), key, data, {}) for key, data in objects.items()]
    return job.manifest() or job.finish({"origin": model_config.origin}, objects=markers)


def _read(config: ImportConfig) -> Checkpoint:
    if config.source.endswith((*TORCH_SUFFIXES, ".safetensors")):
        return _read_file(config, *_place(config.source))
    store = Store.open(config.source)
    for place, pipeline in ((store.child("transformer"), store), (store, None)):
        settings = _json(place, CONFIG_KEY)
        if settings is not None:
            return _read_diffusers(config, place, settings, pipeline)
    raise NotFound(
        f"there is no checkpoint at {config.source}: give a .pt or .safetensors file, or a diffusers folder with "
        "transformer/config.json"
    )


def _read_file(config: ImportConfig, store: Store, name: str) -> Checkpoint:
    """A file with the official names, whatever holds them."""
    with _local(store, name) as path:
        if name.endswith(".safetensors"):
            state_dict = read_safetensors(Store.open(str(path.parent)), path.name)
        else:
            state_dict = read_torch_file(path)
        sha256 = Store.open(str(path.parent)).sha256(path.name)
    if "pos_embed.proj.weight" in state_dict:
        raise UserError(
            f"{config.source} has diffusers' parameter names: give the folder with its {CONFIG_KEY}"
        )
    num_classes = len(_named_labels(config.labels)) if config.labels else None
    model = config_of(state_dict, config.source, num_heads=config.num_heads, num_classes=num_classes)
    return Checkpoint(name, sha256, _model_config(config, model, name, sha256), state_dict)


def _read_diffusers(
    config: ImportConfig, store: Store, settings: dict[str, Any], pipeline: Store | None
) -> Checkpoint:
    """A transformer folder of diffusers, and the pipeline around it if there is one."""
    where, name = store.uri, (pipeline or store).uri.rsplit("/", 1)[-1]
    model = config_from_diffusers(settings, where)
    weights, sha256 = _diffusers_weights(store)
    index = _json(pipeline, "model_index.json") or {} if pipeline else {}
    vae_settings = (_json(pipeline, f"{VAE_FOLDER}/{CONFIG_KEY}") or {}) if pipeline else {}
    scale = float(vae_settings.get("scaling_factor", SD_SCALING_FACTOR))
    scheduler = (_json(pipeline, "scheduler/scheduler_config.json") or {}) if pipeline else {}
    diffusion = schedule_from_diffusers(scheduler, where)
    found = _model_config(config, model, name, sha256, scale, diffusion)
    labels = _id2label(index.get("id2label"), model.num_classes)
    if pipeline is not None and (side := _json(pipeline, SIDE_KEY)) is not None:
        told, labels = _side_config(side, f"{pipeline.uri}/{SIDE_KEY}")
        found = _with_given(told, found, config)
    state_dict = from_diffusers(weights, found.model, where)
    state_dict["pos_embed"] = _position_table(found.model)
    return Checkpoint(
        name,
        sha256,
        found,
        state_dict,
        labels,
        pipeline.child(VAE_FOLDER).uri if pipeline and vae_settings else None,
    )


def _json(store: Store, key: str) -> dict[str, Any] | None:
    """A JSON object, None where there is none."""
    try:
        value = json.loads(store.get(key))
    except NotFound:
        return None
    except ValueError as error:
        raise UserError(f"{store.where(key)} is no JSON ({error}): restore it") from error
    return value if isinstance(value, dict) else None


def _diffusers_weights(store: Store) -> tuple[dict[str, Tensor], str]:
    if store.head(WEIGHTS_NAME) is not None:
        return read_safetensors(store, WEIGHTS_NAME), store.sha256(WEIGHTS_NAME)
    old_name = WEIGHTS_NAME.replace(".safetensors", ".bin")
    try:
        with _local(store, old_name) as path:
            return read_torch_file(path), store.sha256(old_name)
    except NotFound:
        raise NotFound(
            f"there is neither {WEIGHTS_NAME} nor {old_name} in {store.uri}: copy the folder again"
        ) from None


def _model_config(
    config: ImportConfig,
    model: DiTConfig,
    name: str,
    sha256: str,
    scale: float = SD_SCALING_FACTOR,
    diffusion: DiffusionConfig | None = None,
) -> ModelConfig:
    guided = config.guidance_channels
    return ModelConfig(
        model=model,
        diffusion=diffusion if diffusion and config.diffusion == DiffusionConfig() else config.diffusion,
        latents=LatentsConfig(
            shift=config.shift,
            scale=scale if config.scale is None else config.scale,
            image_size=model.input_size * OFFICIAL_DOWNSAMPLE,
        ),
        guidance_channels=guided if guided and guided < model.in_channels else None,
        origin=f"{name} (sha256 {sha256})",
        licence=config.licence or PUBLISHED.get(name, ""),
    )


def _with_given(told: ModelConfig, found: ModelConfig, config: ImportConfig) -> ModelConfig:
    """What ``ray_dit.json`` told, but for what the command line says otherwise."""
    default = {name: field.default for name, field in ImportConfig.model_fields.items()}
    given = {name for name, value in default.items() if getattr(config, name) != value}
    changes: dict[str, Any] = {
        name: getattr(found, name) for name in given & {"guidance_channels", "licence", "diffusion"}
    }
    if given & {"scale", "shift"}:
        changes["latents"] = found.latents
    return told.model_copy(update=changes)


def _side_config(side: Any, where: str) -> tuple[ModelConfig, Labels]:
    try:
        return ModelConfig.model_validate_json(json.dumps(side["config"])), Labels.from_json(
            json.dumps(side["labels"])
        )
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} can't be read ({first_message(error)}): restore or remove it") from error


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
    store, name = _place(source)
    text = store.get(name).decode()
    try:
        return Labels.from_json(text) if name.endswith(".json") else Labels(tuple(text.splitlines()))
    except ValueError as error:
        raise UserError(
            f"{source} can't be read ({first_message(error)}): give labels.json, or a name a line"
        ) from error


def _with_vae(config: ModelConfig, source: str | None, where: str) -> tuple[ModelConfig, dict[str, bytes]]:
    """The configuration with its VAE, and the VAE's files unless it is referred to by hub id."""
    channels = config.model.in_channels
    if source is None and channels != 4:
        raise UserError(
            f"{where} works on {channels} channels, which Stable Diffusion's VAE hasn't: give its VAE by --vae"
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
    return config.model_copy(update={"latents": latents}), vae.files()


def _place(uri: str) -> tuple[Store, str]:
    """The folder of an object, and its key there."""
    folder, slash, name = uri.rpartition("/")
    return Store.open(folder or slash or "."), name


@contextlib.contextmanager
def _local(store: Store, key: str) -> Iterator[Path]:
    """The object as a file: its own, or a copy while the context lasts. NotFound."""
    path = store.local_path(key)
    if path is not None:
        store.open_file(key).close()
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / key
        with store.open_file(key) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        yield copy


def export(config: ExportConfig) -> str:
    """Writes the model in another's format; returns where. What is there already must be the same.

    diffusers: a folder for ``DiTPipeline.from_pretrained``. official: one file, a bare state dict.
    """
    folder = read_model(config.model)
    state_dict = folder.state_dict()
    check_shapes(state_dict, meta_dit(folder.config.model).state_dict(), folder.store.uri)
    if config.format == "official":
        return _export_official(state_dict, config.output)
    store = Store.open(config.output)
    for key, data in diffusers_objects(folder, state_dict).items():
        store.put(key, data)
    return store.uri


def _export_official(state_dict: dict[str, Tensor], output: str) -> str:
    if not output.endswith(TORCH_SUFFIXES):
        raise UserError(
            f"an official checkpoint is one file, and {output} does not end in .pt: give such a name"
        )
    sink = io.BytesIO()
    torch.save(state_dict, sink)
    store, name = _place(output)
    store.put(name, sink.getvalue())
    return store.where(name)


def diffusers_objects(folder: ModelFolder, state_dict: dict[str, Tensor]) -> dict[str, bytes]:
    """The files of a diffusers DiTPipeline by key, model_index.json last."""
    config, vae = folder.config, VAE.load(folder.vae_uri)
    latents = _normalisation_in_vae(vae, config.latents)
    side = {
        "config": config.model_copy(update={"latents": latents}).model_dump(mode="json"),
        "labels": json.loads(folder.labels.to_json()),
    }
    index = {
        "_class_name": "DiTPipeline",
        "id2label": {str(number): name for number, name in enumerate(folder.labels.names)},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    weights = to_diffusers(state_dict, config.model)
    return {
        f"transformer/{CONFIG_KEY}": canonical(transformer_config(config.model)),
        f"transformer/{WEIGHTS_NAME}": save(weights, metadata={"format": "pt"}),
        "scheduler/scheduler_config.json": canonical(scheduler_config(config.diffusion)),
        **{f"{VAE_FOLDER}/{name}": data for name, data in vae.files().items()},
        SIDE_KEY: canonical(side),
        "model_index.json": canonical(index),
    }


def _normalisation_in_vae(vae: VAE, latents: LatentsConfig) -> LatentsConfig:
    """Gives the VAE what DiTPipeline can't do to latents: it knows one scale, ``scaling_factor``, and no shift.

    Returns the normalisation that is left to whoever uses the VAE.
    """
    shifts = latents.shift if isinstance(latents.shift, tuple) else (latents.shift,)
    if isinstance(latents.scale, tuple) or any(shifts):
        vae.fold_normalisation(latents.shift, latents.scale)
        latents = latents.model_copy(update={"shift": 0.0, "scale": 1.0})
    vae.module.register_to_config(scaling_factor=latents.scale)
    return latents
