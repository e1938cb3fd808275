"""What the two training stages share: data order, workers, checkpoints, the optimizer."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_dit.config.base import (
    Content,
    ContentConfig,
    NonNegativeInt,
    NumberOrRange,
    Placement,
    PositiveInt,
    Precision,
    Seed,
    Uri,
    range_of,
)
from ray_dit.config.stage import StageConfig


class OptimizerConfig(ContentConfig):
    """AdamW (Loshchilov & Hutter 2019) and its learning rate over time."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate; the paper's is 1e-4."""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant as in the paper, or a cosine to zero at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient over all parameters; longer ones are scaled down."""


class TrainingConfig(StageConfig):
    """What the two training stages share: data order, workers, checkpoints."""

    seed: Content[Seed] = 0
    """Decides the order of the data, all noise and the initial weights."""
    steps: Content[PositiveInt]
    """Optimizer steps in all."""
    batch_size: Content[PositiveInt]
    """Samples per step over all workers; the number of workers must divide it."""
    num_workers: Placement[NumberOrRange] = 1
    """Ray Train workers (DDP), or a range: 2..8 grows and shrinks with the cluster. The same samples in the
    same order, with other last bits; may change when a run goes on."""
    use_gpu: Placement[bool] = False
    """Give each worker a GPU."""
    precision: Content[Precision] = "float32"
    """bfloat16: matrix products round their factors, as autocast does; weights, their average, the optimizer
    and the loss stay float32."""
    compile: Content[bool] = False
    """Compile the model before the first step: faster, with other last bits."""
    tf32: Content[bool] = False
    """On a GPU, let products that stay float32 round their factors to 10 bits (TF32)."""
    batches_per_step: Content[PositiveInt] = 1
    """Batches of which each step's gradient is the mean, one after another: less memory for the same
    batch_size, which is that of the step."""
    checkpoint_every: Content[PositiveInt] = 1000
    """Steps between checkpoints."""
    log_every: Content[PositiveInt] = 10
    """Steps between points of the loss curve, each the mean over them; divides checkpoint_every."""
    keep_last: Placement[PositiveInt] = 2
    """How many of the newest checkpoints stay; with 1 there is none to go back to should it get damaged."""
    keep_every: Placement[PositiveInt | None] = None
    """Checkpoints of multiples of so many steps stay too; a multiple of checkpoint_every."""
    tensorboard: Placement[Uri | None] = None
    """Folder for TensorBoard's event files (needs the extra ray-dit[tensorboard])."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers; the same number twice where it is fixed."""
        return range_of(self.num_workers)

    def working(self, there: int) -> int:
        """How many of ``there`` workers train, the most that can share the batch; the others are idle."""
        return next(
            count for count in range(there, 0, -1) if self.batch_size % (count * self.batches_per_step) == 0
        )

    @model_validator(mode="after")
    def _fits(self) -> "TrainingConfig":
        fewest, most = self.worker_range
        shared = (self.batch_size % (count * self.batches_per_step) for count in range(fewest, most + 1))
        if all(shared):
            parts = f" times batches_per_step {self.batches_per_step}" if self.batches_per_step > 1 else ""
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_workers {self.num_workers}{parts}: "
                "change one of them"
            )
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} is not a multiple of log_every {self.log_every}"
            )
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every {self.keep_every} is not a multiple of checkpoint_every {self.checkpoint_every}"
            )
        return self
