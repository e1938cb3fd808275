"""`ray-dit import-checkpoint`: published DiT weights to model folders; without Ray.

What a source holds is found elsewhere (`sources`). This module lays the command line's settings over it,
checks that weights and network fit, brings VAE and class names along, writes what only changes if the source
does, and says what of it was read and what assumed.
"""

import hashlib
from collections.abc import Callable, Set
from dataclasses import replace

from pydantic import ValidationError

from ray_dit.checkpoints.sources import Checkpoint, named_labels, read_source
from ray_dit.config import ImportConfig
from ray_dit.core.dit import null_label
from ray_dit.errors import UserError, first_message
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import (
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
from ray_dit.vae import VAE, files_sha256, find_vae

OFFICIAL_VAE = "stabilityai/sd-vae-ft-ema"


def import_checkpoint(
    config: ImportConfig, *, say: Callable[[str], None] = lambda line: None
) -> Manifest[ModelResult]:
    """Writes the model folder; returns its manifest. The weights' values are those of the source, in float32.

    ``say`` is given a line each for what was read from the source, told by ``config``, and assumed.

    Raises UserError naming the parameters when they don't fit a DiT, for weights that were trained to predict
    something else than eps, and for a pickle with code in it.
    """
    found = read_source(config)
    check_shapes(found.state_dict, meta_dit(found.config.model).state_dict(), found.where)
    labels = _labels(config.labels, found)
    asked = _as_asked(config, found.config)
    model_config, vae_files = _with_vae(asked, config.vae or found.vae, config.source)
    manifest = _write(config, found, model_config, labels, vae_files)
    ignored = {"num_heads"} & found.read  # of diffusers' folders, which say them themselves
    for line in account(model_config, labels, read=found.read, told=_told(config) - ignored):
        say(line)
    return manifest


def _write(
    config: ImportConfig,
    found: Checkpoint,
    model_config: ModelConfig,
    labels: Labels,
    vae_files: dict[str, bytes],
) -> Manifest[ModelResult]:
    card = model_card(model_config, labels, title=f"{found.name}, imported by ray-dit")
    objects = model_objects(model_config, found.state_dict, labels, vae_files, card)
    inputs = {
        "source": found.sha256,
        "vae": files_sha256(vae_files) if vae_files else model_config.vae,
        "labels": hashlib.sha256(labels.to_json()).hexdigest(),
    }
    opened = open_job(config, ModelResult.stage_name, inputs, resolved={"model": model_config})
    job = replace(opened, repairing=True)
    markers = [job.put(key.replace("/", "-"), key, data, Facts()) for key, data in objects.items()]
    if manifest := job.whole(ModelResult):
        job.restore_markers(manifest)
        return manifest
    return job.finish(ModelResult(origin=model_config.origin), objects=markers)


def account(config: ModelConfig, labels: Labels, *, read: Set[str], told: Set[str]) -> list[str]:
    """What an imported model is taken for, by where that comes from, so that a wrong guess shows.

    ``read`` and ``told`` name what the source says and what was told; told wins, and the rest was assumed.
    """
    latents, diffusion, channels = config.latents, config.diffusion, config.model.in_channels
    null_class = "" if null_label(config.model) is not None else " without a null class"
    meanings = {
        "classes": f"{config.model.num_classes} classes{null_class}",
        "labels": f"class names ({', '.join(labels.names[:2])}, ...)" if len(labels) else "no class names",
        "num_heads": f"{config.model.num_heads} attention heads",
        "prediction": "prediction of eps",
        "num_train_timesteps": f"{diffusion.num_train_timesteps} time steps",
        "beta_start": f"linear betas from {diffusion.beta_start}",
        "beta_end": f"linear betas to {diffusion.beta_end}",
        "vae": f"VAE {config.vae}",
        "shift": f"latents' shift {latents.shift}",
        "scale": f"latents' scale {latents.scale}",
        "guidance_channels": f"guidance on {config.guidance_channels or channels} of {channels} channels",
    }
    lines = {
        "read": [meaning for name, meaning in meanings.items() if name in read - told],
        "told": [meaning for name, meaning in meanings.items() if name in told],
        "assumed": [meaning for name, meaning in meanings.items() if name not in read | told],
    }
    return [f"{kind}: {', '.join(some)}" for kind, some in lines.items() if some]


def _told(config: ImportConfig) -> Set[str]:
    """What the command line says, by the names of `account`."""
    names = ("labels", "num_heads", "vae", "scale", "shift", "guidance_channels")
    told = {name for name in names if getattr(config, name) is not None}
    return told | config.diffusion.model_fields_set | ({"classes"} if "labels" in told else set())


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


def _labels(source: str | None, found: Checkpoint) -> Labels:
    num_classes = found.config.model.num_classes
    if source is None:
        guess = Labels.imagenet() if num_classes == 1000 else Labels.numbered(num_classes)
        return found.labels if found.labels is not None else guess
    labels = named_labels(source)
    if len(labels) != num_classes:
        raise UserError(
            f"{source} names {len(labels)} classes, but {found.name} has {num_classes}: give their names"
        )
    return labels


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
