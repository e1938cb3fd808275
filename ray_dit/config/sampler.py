"""How latents are drawn, as plain data.

Which samplers there are and what they can do is core.samplers' affair.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ray_dit.config.base import ContentConfig

SamplerName = Literal["ddpm", "ddim", "dpmpp", "unipc"]
"""The samplers there are: each is the module of that name in `ray_dit/core/samplers/`."""
GuidanceScale = Annotated[float, Field(ge=0.0, le=100.0)]


class SamplerConfig(ContentConfig):
    """How latents are drawn: the sampler's table and the guidance.

    The default is chosen by measurement: docs/sampling.md.
    """

    name: SamplerName = "unipc"
    """ddpm (Ho 2020), ddim (Song 2021), dpmpp (DPM-Solver++(2M), Lu 2022), unipc (UniPC-bh2, Zhao 2023)."""
    num_inference_steps: Annotated[int, Field(gt=0, le=1000)] = 10
    """Model evaluations per image, each one or two rows (guided)."""
    guidance_scale: GuidanceScale = 2.0
    """Classifier-free guidance; 1 is off and skips the unconditional rows."""
    guidance_interval: tuple[float, float] | None = None
    """Training time steps [low, high] inside which guidance acts; outside the scale is 1 (Kynkäänniemi
    2024)."""
    spacing: Literal["auto", "uniform", "respaced", "leading", "trailing", "logsnr"] = "auto"
    """Which time steps are visited; auto is respaced for ddpm and uniform for the others."""
    timesteps: tuple[float, ...] | None = None
    """The exact time steps, falling; instead of spacing and num_inference_steps."""
    eta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """DDIM's noise: 0 deterministic, 1 as much as DDPM."""
    order: Literal[1, 2, 3] = 2
    """Order of dpmpp (1 or 2) and unipc (1 to 3)."""
    variance: Literal["auto", "learned", "fixed_small", "fixed_large"] = "auto"
    """DDPM's variance; auto is learned where the model predicts it (learn_sigma), else fixed_small."""

    @property
    def num_steps(self) -> int:
        """Model evaluations per image: the list's where there is one."""
        return self.num_inference_steps if self.timesteps is None else len(self.timesteps)

    @model_validator(mode="after")
    def _consistent(self) -> "SamplerConfig":
        if self.timesteps is not None:
            steps = self.timesteps
            if not steps or any(a <= b for a, b in zip(steps, steps[1:], strict=False)) or steps[-1] < 0:
                raise ValueError("timesteps must be a falling list of numbers of at least 0")
        if self.guidance_interval is not None and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval must be low, then high")
        return self

    def over(self, base: Self) -> Self:
        """``base`` with what was set here in place of its own; ValueError if they do not fit together.

        Another sampler keeps the number of steps and the guidance, and nothing that was set for the one
        before. A number of steps or a spacing takes the place of a list of time steps.
        """
        asked: dict[str, Any] = self.model_dump(exclude_unset=True)
        spaced = asked.keys() & {"num_inference_steps", "spacing"}
        if spaced and asked.get("timesteps") is not None:
            raise ValueError("timesteps is a list of its own: leave num_inference_steps and spacing out")
        kept: dict[str, Any] = base.model_dump()
        if asked.get("name", base.name) != base.name:
            kept = base.model_dump(include={"guidance_scale", "guidance_interval"})
            kept["num_inference_steps"] = base.num_steps
        elif spaced:
            kept |= {"num_inference_steps": base.num_steps, "timesteps": None}
        return type(self)(**kept | asked)
