"""`ray-dit export`: a model folder as diffusers' DiTPipeline or as an official .pt; without Ray.

Names and shapes are storage's affair (`official`, `diffusers_layout`). What diffusers has no place for goes
into a file of our own beside, so that importing an export gives the same model.
"""

import io
import json

import torch
from safetensors.torch import save
from torch import Tensor

from ray_dit.checkpoints.sources import SIDE_KEY, TORCH_SUFFIXES, check_position_table, locate
from ray_dit.config import ExportConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.errors import UserError
from ray_dit.folders.model import ModelFolder, read_model
from ray_dit.formats.foreign.diffusers_layout import scheduler_config, to_diffusers, transformer_config
from ray_dit.formats.model_folder import CONFIG_KEY, VAE_FOLDER
from ray_dit.formats.weights import check_shapes
from ray_dit.ledger.stored_json import canonical
from ray_dit.pipeline import meta_dit
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE, WEIGHTS_NAME


def export(config: ExportConfig) -> str:
    """Writes the model in another's format; returns where. What is there already must be the same.

    diffusers: a folder for ``DiTPipeline.from_pretrained``. official: one file, a bare state dict.
    """
    folder = read_model(config.model)
    state_dict = folder.state_dict()
    check_shapes(state_dict, meta_dit(folder.config.model).state_dict(), folder.store.uri)
    if config.format == "official":
        return _export_official(state_dict, config.output)
    store = open_store(config.output)
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
    store, name, _ = locate(output)
    store.put(name, sink.getvalue())
    return store.where(name)


def diffusers_objects(folder: ModelFolder, state_dict: dict[str, Tensor]) -> dict[str, bytes]:
    """The files of a diffusers DiTPipeline by key, model_index.json last."""
    config = folder.config
    check_position_table(
        state_dict["pos_embed"],
        config.model,
        folder.store.uri,
        "diffusers computes its own: export as official instead",
    )
    vae = VAE.load(folder.vae_uri)
    latents = _normalisation_in_vae(vae, config.latents)
    side = {
        "config": config.model_copy(update={"latents": latents, "vae": VAE_FOLDER}).model_dump(mode="json"),
        "labels": json.loads(folder.labels.to_json()),
    }
    # Neither the side file nor id2label is written when diffusers saves the pipeline again; what the
    # transformer's configuration holds is.
    index = {
        "_class_name": "DiTPipeline",
        "id2label": {str(number): name for number, name in enumerate(folder.labels.names)},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    weights = to_diffusers(state_dict, config.model)
    return {
        f"transformer/{CONFIG_KEY}": canonical(transformer_config(config.model, side)),
        f"transformer/{WEIGHTS_NAME}": save(weights, metadata={"format": "pt"}),
        "scheduler/scheduler_config.json": canonical(scheduler_config(config.diffusion)),
        **{f"{VAE_FOLDER}/{name}": data for name, data in vae.files().items()},
        SIDE_KEY: canonical(side),
        "model_index.json": canonical(index),
    }


def _normalisation_in_vae(vae: VAE, latents: LatentsConfig) -> LatentsConfig:
    """Gives the VAE what DiTPipeline can't do to latents: that knows one ``scaling_factor`` and no shift.

    Returns the normalisation that is left to whoever uses the VAE.
    """
    shifts = latents.shift if isinstance(latents.shift, tuple) else (latents.shift,)
    if isinstance(latents.scale, tuple) or any(shifts):
        vae.fold_normalisation(latents.shift, latents.scale)
        latents = latents.model_copy(update={"shift": 0.0, "scale": 1.0})
    vae.module.register_to_config(scaling_factor=latents.scale)
    return latents
