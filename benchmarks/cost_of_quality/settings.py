"""What the benchmark measures, as settings.yaml fixes it, and the samplers that makes."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from benchmarks.cost_of_quality.estimate import T_975
from ray_dit.config import ClassifierConfig, Config, Fraction, PositiveInt, Precision, SamplerConfig, Seed

SETTINGS = Path(__file__).with_name("settings.yaml")
QUICK: dict[str, Any] = {
    "classifier": {"steps": 60},
    "num_samples": 40,
    "seeds": [0, 1],
    "steps": [5, 10],
    "reference_steps": 20,
    "ancestral": {"name": "ddpm", "num_inference_steps": 25, "variance": "fixed_small"},
    "control": {"precision": "float32", "solver": "dpmpp", "steps": [10, 20], "seeds": [0]},
}
"""Instead of the committed settings: shows that everything works, and measures nothing."""


class Control(Config):
    """A few cells once more in another precision, guided at every step."""

    precision: Precision
    solver: str
    steps: tuple[PositiveInt, ...]
    seeds: tuple[Seed, ...]


class Settings(Config):
    """settings.yaml."""

    size: PositiveInt
    heldout: Fraction
    classifier: ClassifierConfig
    classifier_seed: Seed
    num_samples: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt
    precision: Precision
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=len(T_975) + 1)]
    solvers: tuple[SamplerConfig, ...]
    steps: tuple[PositiveInt, ...]
    reference_steps: PositiveInt
    ancestral: SamplerConfig
    guidance_scale: float
    guidance_intervals: tuple[tuple[float, float] | None, ...]
    goal_steps: PositiveInt
    goal_loss: float
    control: Control

    def samplers(self) -> list[SamplerConfig]:
        """Every sampler per interval: the solvers by steps, the reference last, then the ancestral one."""
        return [
            sampler
            for interval in self.guidance_intervals
            for solver in self.solvers
            for sampler in [
                *(self._with(solver, interval, steps) for steps in self.steps),
                self._with(solver, interval, self.reference_steps),
            ]
        ] + [self._with(self.ancestral, interval) for interval in self.guidance_intervals]

    def reference(self, sampler: SamplerConfig) -> SamplerConfig:
        """The same sampler at the steps all are compared with."""
        return self._with(sampler, sampler.guidance_interval, self.reference_steps)

    def _with(
        self, sampler: SamplerConfig, interval: tuple[float, float] | None, steps: int | None = None
    ) -> SamplerConfig:
        fields = sampler.model_dump() | {"guidance_scale": self.guidance_scale, "guidance_interval": interval}
        if steps is not None:
            fields["num_inference_steps"] = steps
        return SamplerConfig.model_validate(fields)
