"""The forward process: its noise schedule."""

from typing import Annotated, Self

from pydantic import Field

from ray_dit.config.base import ContentConfig, PositiveInt


class DiffusionConfig(ContentConfig):
    """The forward process: Ho et al. 2020's linear schedule as DiT trains it."""

    num_train_timesteps: PositiveInt = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02

    def over(self, base: Self) -> Self:
        """``base`` with what was set here (`model_fields_set`) in place of its own."""
        return type(base).model_validate(base.model_dump() | self.model_dump(exclude_unset=True))
