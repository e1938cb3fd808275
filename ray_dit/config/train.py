"""Settings of `ray-dit train`."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import ByteSize, Field, model_validator

from ray_dit.config.base import Content, NonNegativeInt, Over, Placement, PositiveInt, Uri
from ray_dit.config.diffusion import DiffusionConfig
from ray_dit.config.model import DiTSizeConfig
from ray_dit.config.recipes import Recipe, under_recipe
from ray_dit.config.sampler import SamplerConfig
from ray_dit.config.training import OptimizerConfig, TrainingConfig


class TrainConfig(TrainingConfig):
    """`ray-dit train`: a DiT on latents, with DDP on Ray Train."""

    latents: Placement[Uri]
    """Folder made by encode."""
    cache_size: Placement[ByteSize | None] = None
    """Bytes of latents to copy to RAY_DIT_CACHE on each machine at most, as 200GB; the rest is read from
    storage row by row. By default all that its disk holds, but for a twentieth of it."""
    recipe: Placement[Recipe] = None
    model_output: Placement[Uri | None] = None
    """Folder the finished model goes to; by default `model` inside output, or `model-g01` of its first
    extension."""
    model: Annotated[
        DiTSizeConfig, Over("that of the preset, else of init_from's model, else of DiT-S/2")
    ] = DiTSizeConfig()
    diffusion: Annotated[DiffusionConfig, Over("that of init_from's model, else the paper's")] = (
        DiffusionConfig()
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: Content[PositiveInt] = 400_000
    batch_size: Content[PositiveInt] = 256
    checkpoint_every: Content[PositiveInt] = 5000
    ema_decay: Content[Annotated[float, Field(gt=0, lt=1)]] = 0.9999
    """Decay of the averaged weights; warmed up as (1 + step) / (10 + step), so that short runs are usable."""
    min_snr_gamma: Content[Annotated[float, Field(gt=0)] | None] = None
    """Min-SNR weighting of the loss (Hang et al. 2023); off by default, as in the paper."""
    extend: Placement[bool] = False
    """Train a finished run in output on, up to more steps, where the schedule is constant; what is there
    stays, and the model goes to model-g01 inside output."""
    init_from: Placement[Uri | None] = None
    """Model folder to start from: size and schedule are its own; class count, resolution and schedule may
    differ."""
    label_init_std: Content[Annotated[float, Field(gt=0)]] = 0.02
    """Standard deviation of the initial label vectors. 0.02 is the paper's, for runs of 100,000s of steps;
    with 1 the labels take hold within hundreds."""
    activation_checkpointing: Content[bool] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    sampler: SamplerConfig = SamplerConfig()
    """For the sample grids, and the defaults stored with the model."""
    grid_per_class: Content[NonNegativeInt] = 8
    """Images per class in the sample grid made at each checkpoint, of the first ten classes; 0 makes none."""
    validate_every: Content[NonNegativeInt | None] = None
    """Steps between validation losses, on held-out rows with the averaged weights; by default those between
    checkpoints, 0 for none. The last step has one too."""
    validation_rows: Content[PositiveInt] = 1024
    """Held-out rows that the validation loss is the mean of, at most."""

    def is_validated(self, step: int, ends: Collection[int] = ()) -> bool:
        """Whether there is a validation loss after ``step`` steps, where any row is held out.

        ``ends``: the last steps of the trainings that this one extends.
        """
        every = self.checkpoint_every if self.validate_every is None else self.validate_every
        return every > 0 and (step % every == 0 or step in (self.steps, *ends))

    @model_validator(mode="before")
    @classmethod
    def _under_recipe(cls, given: Any) -> Any:
        return under_recipe(given)

    @model_validator(mode="after")
    def _has_points(self) -> "TrainConfig":
        if (self.validate_every or 0) % self.log_every:
            raise ValueError(
                f"validate_every {self.validate_every} is not a multiple of log_every {self.log_every}"
            )
        return self
