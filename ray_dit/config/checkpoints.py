"""Settings of `ray-dit import-checkpoint`, `ray-dit export` and `ray-dit export-model`."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from ray_dit.config.base import Config, Content, Over, Placement, PositiveInt, Uri, VaeSource, absolute
from ray_dit.config.diffusion import DiffusionConfig


class ImportConfig(Config):
    """`ray-dit import-checkpoint`: published or diffusers' DiT weights as a model folder."""

    source: Placement[Uri]
    """An official .pt, a .safetensors with the same names, or a diffusers folder (pipeline or
    transformer)."""
    output: Placement[Uri]
    """Model folder to write: a path or any fsspec URI."""
    vae: Placement[VaeSource | None] = None
    """VAE folder, copied in, or hub id, fetched when needed; by default the pipeline's own, else
    sd-vae-ft-ema."""
    scale: Content[float | tuple[float, ...] | None] = None
    """The model's x_start is (latents - shift) * scale, one number or one per channel; by default what the
    source says, else 0.18215, Stable Diffusion's."""
    shift: Content[float | tuple[float, ...] | None] = None
    """See scale; by default what the source says, else 0."""
    diffusion: Annotated[DiffusionConfig, Over("what the source says, else the paper's")] = DiffusionConfig()
    """The schedule the model was trained on, where the source does not say."""
    labels: Placement[str | None] = None
    """imagenet, or a file of class names: labels.json, or one name per line; by default imagenet for 1000
    classes."""
    num_heads: Content[PositiveInt | None] = None
    """Attention heads of a model of no preset's size; weights don't show them."""
    guidance_channels: Content[PositiveInt | Literal["all"] | None] = None
    """Latent channels guidance acts on; by default what the source says, else 3 for the published files, as
    for their figures, and all for others."""
    licence: Content[str | None] = None
    """Licence of the weights, for the model card."""
    accept_fingerprint: Placement[bool] = False
    """Go on with an import that was begun with other library versions."""


class ExportConfig(Config):
    """`ray-dit export`: a model folder as diffusers' DiTPipeline, or as an official .pt."""

    model: Uri
    """Model folder."""
    output: Uri
    """Folder to write (diffusers), or .pt file (official): a path or any fsspec URI."""
    format: Literal["diffusers", "official"] = "diffusers"


NEWEST = "last"


def _run_and_step(text: str) -> str:
    run, at, step = text.rpartition("@")
    if not run or not re.fullmatch(rf"\d{{1,15}}|{NEWEST}", step):
        raise ValueError(
            f"{text!r} names no checkpoint: give RUN@STEP, or RUN@{NEWEST}, RUN being the --output of train"
        )
    return f"{absolute(run)}{at}{step}"


class ExportModelConfig(Config):
    """`ray-dit export-model`: the averaged weights of a training's checkpoint as a model folder."""

    checkpoint: Annotated[str, AfterValidator(_run_and_step)]
    """RUN@STEP or RUN@last: the output folder of train, finished or not, and a step that it has a checkpoint
    of."""
    output: Uri | None = None
    """Model folder to write; by default model-step-STEP inside RUN."""
    latents: Uri | None = None
    """Folder of the latents that RUN is trained on; by default where its newest start has read them."""
    init_from: Uri | None = None
    """Model folder that RUN started from, likewise."""

    @property
    def run(self) -> str:
        """The training's folder."""
        return self.checkpoint.rpartition("@")[0]

    @property
    def step(self) -> int | None:
        """The step asked for; None for the newest."""
        step = self.checkpoint.rpartition("@")[2]
        return None if step == NEWEST else int(step)
