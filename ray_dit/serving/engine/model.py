"""What the engine needs of a model; `ray_dit.pipeline.Pipeline` is one, and a test's fake another."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ray_dit.config import SamplerConfig
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.samplers import SamplerTable


class Model(Protocol):
    """A denoiser of latents [C, H, W] = ``latent_shape`` on ``device``, and the decoder of what it makes."""

    @property
    def guided_model(self) -> GuidedModel: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    @property
    def device(self) -> torch.device: ...

    def table(self, sampler: SamplerConfig) -> SamplerTable:
        """The sampler's coefficients; UserError for settings the model can't follow."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents [N, C, H, W] as pixels uint8 [N, height, width, 3]."""
        ...
