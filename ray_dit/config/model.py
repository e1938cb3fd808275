"""The shape of a diffusion transformer, in full and as one asks for it."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from ray_dit.config.base import ContentConfig, Fraction, NonNegativeInt, PositiveInt

PRESET_SIZES: dict[str, tuple[int, int, int]] = {
    # name: (hidden_size, depth, num_heads); Peebles & Xie 2022, table 1
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


class DiTConfig(ContentConfig):
    """The shape of a diffusion transformer: everything its parameters' names and shapes follow from."""

    input_size: PositiveInt = 32
    """Height and width of the latents."""
    patch_size: PositiveInt = 2
    """Height and width of the square of latents that becomes one token."""
    in_channels: PositiveInt = 4
    """Channels of the latents."""
    hidden_size: PositiveInt = 1152
    """Width of a token."""
    depth: Annotated[int, Field(gt=0, le=1000)] = 28
    """Number of transformer blocks."""
    num_heads: PositiveInt = 16
    """Attention heads; must divide hidden_size."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Width of the MLP's hidden layer over hidden_size."""
    num_classes: NonNegativeInt = 1000
    """Classes; label num_classes is the null class of guidance. 0: unconditional."""
    class_dropout_prob: Fraction = 0.1
    """Probability of a training label being replaced by the null class; 0 leaves no null class and no
    guidance."""
    learn_sigma: bool = True
    """Predict the variance too: twice as many output channels."""

    @model_validator(mode="after")
    def _divides(self) -> "DiTConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 4, which the position table needs"
            )
        if self.input_size % self.patch_size:
            raise ValueError(
                f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}"
            )
        return self

    @classmethod
    def preset(cls, name: str, **fields: Any) -> "DiTConfig":
        """A published size such as ``DiT-XL/2`` (table 1 of the paper); other fields by keyword."""
        sizes = {f"DiT-{size}/{patch}": (size, patch) for size in PRESET_SIZES for patch in (2, 4, 8)}
        if name not in sizes:
            raise ValueError(f"no preset {name!r}; there are {', '.join(sizes)}")
        size, patch = sizes[name]
        hidden_size, depth, num_heads = PRESET_SIZES[size]
        return cls(patch_size=patch, hidden_size=hidden_size, depth=depth, num_heads=num_heads, **fields)


class DiTSizeConfig(ContentConfig):
    """Size of the DiT to train; the latents' shape and the classes come from the data.

    What is not given is that of the preset, of the model to start from (init_from), or else of DiT-S/2, whose
    values are the defaults here.
    """

    preset: str | None = None
    """A published size such as DiT-XL/2: patch_size, hidden_size, depth and num_heads."""
    patch_size: PositiveInt = 2
    """Height and width of the square of latents that becomes one token."""
    hidden_size: PositiveInt = 384
    """Width of a token."""
    depth: PositiveInt = 12
    """Number of transformer blocks."""
    num_heads: PositiveInt = 6
    """Attention heads; must divide hidden_size."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Width of the MLP's hidden layer over hidden_size."""
    class_dropout_prob: Fraction = 0.1
    """Probability of a training label being replaced by the null class; 0 leaves no null class and no
    guidance."""
    learn_sigma: bool = True
    """Predict the variance too: twice as many output channels."""

    def resolve(
        self, *, input_size: int, in_channels: int, num_classes: int, base: DiTConfig | None = None
    ) -> DiTConfig:
        """The full shape for latents of this size and that many classes.

        ``base``: the model to start from.
        """
        size = (base or DiTConfig.preset("DiT-S/2")).model_dump(include=set(DiTSizeConfig.model_fields))
        if self.preset is not None:
            preset = DiTConfig.preset(self.preset)
            size |= preset.model_dump(include={"patch_size", "hidden_size", "depth", "num_heads"})
        size |= self.model_dump(exclude={"preset"}, exclude_unset=True)
        return DiTConfig(**size, input_size=input_size, in_channels=in_channels, num_classes=num_classes)
