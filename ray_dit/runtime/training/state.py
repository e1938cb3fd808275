"""Everything a checkpoint holds; knows nothing of workers, or of where checkpoints lie.

There is nothing else to remember: samples, learning rate and the decay of the average follow from the step.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ray_dit.config import OptimizerConfig
from ray_dit.core.train_step import make_ema, make_optimizer
from ray_dit.formats.checkpoint import CheckpointFacts, with_prefix
from ray_dit.formats.loss_curve import COLUMNS, Point, widened
from ray_dit.formats.worker_history import History, until


@dataclass
class TrainingState:
    """A run between two steps."""

    model: nn.Module
    ema: dict[str, torch.Tensor] | None
    """The averaged weights by parameter name, float32; None trains without them."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps done."""
    log: list[Point] = field(default_factory=lambda: [])
    """The loss curve."""
    columns: int = len(COLUMNS)
    """How many numbers a point of it has."""
    history: History = ()
    """Which workers trained which steps."""

    @classmethod
    def initial(
        cls,
        model: nn.Module,
        optimizer: OptimizerConfig,
        ema_decay: float | None,
        columns: int = len(COLUMNS),
    ) -> "TrainingState":
        """The state before the first step; ``model`` has its initial weights."""
        ema = make_ema(trained_parameters(model)) if ema_decay else None
        return cls(model, ema, make_optimizer(model, optimizer), columns=columns)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the state by name (not copies), and the loss curve as float64 [N, columns]."""
        parameters = trained_parameters(self.model)
        tensors = {f"model.{name}": value for name, value in parameters.items()}
        tensors |= {f"ema.{name}": value for name, value in (self.ema or {}).items()}
        for name, parameter in parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value
        log = torch.tensor(widened(self.log, self.columns), dtype=torch.float64)
        tensors["log"] = log.reshape(-1, self.columns)
        return tensors

    def facts(self) -> CheckpointFacts:
        """What of the state is no tensor."""
        return CheckpointFacts(step=self.step, history=until(self.history, self.step))

    def restore(self, tensors: Mapping[str, torch.Tensor], facts: CheckpointFacts) -> None:
        """Becomes the state that ``tensors`` and ``facts`` were taken from."""
        parameters = trained_parameters(self.model)
        put_weights(parameters, dict(with_prefix("model", tensors)))
        if self.ema is not None:
            put_weights(self.ema, dict(with_prefix("ema", tensors)))
        for name, value in with_prefix("optimizer", tensors):
            parameter, key = name.rsplit(".", 1)
            target = parameters[parameter]
            # The count of steps too: the fused AdamW reads it where the parameters are.
            self.optimizer.state[target][key] = value.to(target.device)
        self.log = widened(tensors["log"].tolist(), self.columns)  # earlier versions kept two numbers
        self.step, self.history = facts.step, facts.history

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model in evaluation mode and without gradients, with its averaged weights where there are any.

        The trained weights come back at the end, bit for bit.
        """
        parameters = trained_parameters(self.model)
        trained = {name: value.detach().clone() for name, value in parameters.items()} if self.ema else {}
        self.model.eval()
        try:
            put_weights(parameters, self.ema or {})
            with torch.no_grad():
                yield self.model
        finally:
            put_weights(parameters, trained)
            self.model.train()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; DiT's position table is not."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@torch.no_grad()
def put_weights(targets: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copies each of ``values`` into the tensor of its name, in place; KeyError if there is none."""
    for name, value in values.items():
        targets[name].copy_(value)
