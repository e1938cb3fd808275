"""config.json of a model folder: everything needed to make images with the weights beside it."""

from typing import Literal

from pydantic import model_validator

from ray_dit.config.base import ContentConfig, PositiveInt
from ray_dit.config.diffusion import DiffusionConfig
from ray_dit.config.model import DiTConfig
from ray_dit.config.sampler import SamplerConfig

VAE_FOLDER = "vae"


class LatentsConfig(ContentConfig):
    """How raw latents z become x_start = (z - shift) * scale, and which images they stand for."""

    shift: float | tuple[float, ...] = 0.0
    """One number, or one per channel."""
    scale: float | tuple[float, ...] = 0.18215
    """One number, or one per channel; 0.18215 belongs to Stable Diffusion's VAE."""
    image_size: PositiveInt = 256
    """Height and width of the images in pixels."""


class ModelConfig(ContentConfig):
    """config.json of a model folder: all it takes to make images with the weights beside it."""

    format: Literal["ray-dit model 1"] = "ray-dit model 1"
    model: DiTConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    latents: LatentsConfig = LatentsConfig()
    guidance_channels: PositiveInt | None = None
    """Latent channels guidance acts on: 3 for the official models, as they were evaluated; all by default."""
    sampler: SamplerConfig = SamplerConfig()
    """What is used where nothing else is asked for."""
    vae: str = VAE_FOLDER
    """Folder of the VAE inside the model folder; or a hub id, to be fetched when the VAE is first needed."""
    origin: str = ""
    """Where the weights come from."""
    licence: str = ""
    """Licence of the weights, where known."""

    @model_validator(mode="after")
    def _channels(self) -> "ModelConfig":
        channels = self.model.in_channels
        for name, value in (("shift", self.latents.shift), ("scale", self.latents.scale)):
            if isinstance(value, tuple) and len(value) != channels:
                raise ValueError(f"latents.{name} has {len(value)} numbers for {channels} channels")
        if self.guidance_channels is not None and self.guidance_channels > channels:
            raise ValueError(
                f"guidance_channels is {self.guidance_channels}, but the latents have {channels}"
            )
        return self
