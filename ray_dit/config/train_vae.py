"""Settings of `ray-dit train-vae`."""

from typing import Annotated

from pydantic import Field, model_validator

from ray_dit.config.base import Content, ContentConfig, PositiveInt
from ray_dit.config.images import ImagesConfig
from ray_dit.config.training import OptimizerConfig, TrainingConfig


class VAESizeConfig(ContentConfig):
    """The shape of a diffusers AutoencoderKL.

    The latents are 2**(len(block_out_channels)-1) times smaller.
    """

    latent_channels: PositiveInt = 4
    block_out_channels: tuple[PositiveInt, ...] = (8, 16, 32)
    layers_per_block: PositiveInt = 1
    norm_num_groups: PositiveInt = 4
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _divides(self) -> "VAESizeConfig":
        odd = [channels for channels in self.block_out_channels if channels % self.norm_num_groups]
        if odd:
            raise ValueError(
                f"block_out_channels {odd[0]} is not a multiple of norm_num_groups {self.norm_num_groups}"
            )
        return self


class TrainVaeConfig(TrainingConfig):
    """`ray-dit train-vae`: a small AutoencoderKL for your images, where Stable Diffusion's does not fit."""

    images: ImagesConfig
    vae: VAESizeConfig = VAESizeConfig()
    steps: Content[PositiveInt] = 600
    batch_size: Content[PositiveInt] = 32
    checkpoint_every: Content[PositiveInt] = 200
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-3, schedule="cosine")
    kl_weight: Content[Annotated[float, Field(ge=0)]] = 1e-4
    """Weight of the KL term (a mean over latent values) against the reconstruction error."""
