"""Numbers that go wrong: the step is named, and no checkpoint is written or pruned."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ray_dit.config import OptimizerConfig
from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.runtime.training.watch import Diverged, Watch
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, CPU, Regression, run


@dataclass
class Poisoned(Regression):
    """A regression one of whose samples is no number."""

    poison: int = -1
    value: float = float("nan")

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        made = super().batch(positions)
        made[positions == self.poison] = self.value
        return made


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_the_step_is_named_and_what_was_saved_stays(tmp_path: Path, value: float) -> None:
    longer = CONFIG.model_copy(update={"steps": 16, "log_every": 4})
    run(tmp_path, longer.model_copy(update={"steps": 8}))
    task = Poisoned(OptimizerConfig(learning_rate=0.01), poison=4 * 13 + 2, value=value)
    with pytest.raises(
        Diverged, match=r"diverged in step 14: its loss is \S+, the norm of its gradient (nan|inf)"
    ):
        run(tmp_path, longer, task)
    assert checkpoint_steps(open_store(str(tmp_path))) == [8, 12]
    assert not task.result


def test_on_an_accelerator_it_is_seen_at_the_next_point_of_the_curve() -> None:
    watch = Watch(CPU)
    watch._is_cpu = False  # pyright: ignore[reportPrivateUsage]
    fine, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    watch.see(0, fine, fine)
    watch.check(1, 1.0)
    for step, norm in enumerate((fine, bad, fine, bad)):
        watch.see(step, fine * step, norm)
    with pytest.raises(UserError, match="in step 2: its loss is 1, the norm of its gradient nan"):
        watch.check(4, 1.0)


def test_a_loss_that_is_no_number_though_its_gradient_is_one_is_seen() -> None:
    watch = Watch(CPU)
    watch.see(3, torch.tensor(float("inf")), torch.tensor(1.0))
    with pytest.raises(Diverged, match="by step 4: its mean loss is inf"):
        watch.check(4, float("inf"))


def test_a_model_of_no_trained_parameters_is_finite() -> None:
    from ray_dit.core.train_step import gradient_norm

    assert float(gradient_norm(nn.Linear(1, 1))) == 0.0
