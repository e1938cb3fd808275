"""What a training comes to: the golden loss curve, a step against plain PyTorch, bfloat16 beside float32."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_dit.config import OptimizerConfig, TrainConfig
from ray_dit.core.batch import TrainingBatch
from ray_dit.core.dit import DiT
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.step import Passes
from tests.support.latents_task import (
    LatentsTask,
    latents_task,
    points,
    train_config,
    train_latents,
    write_latents,
)

GOLDEN = Path(__file__).parents[2] / "golden/training/losses.jsonl"
TOLERANCE = 1e-5
"""Relative; golden/training/README.md has what it rests on."""


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_latents(tmp_path_factory.mktemp("golden") / "latents")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DIT_CACHE", str(tmp_path / "cache"))


def numbers(curve: list[dict[str, Any]]) -> np.ndarray:
    """Every number of each point, NaN where it has none."""
    names = ("step", "loss", "gradient_norm", "learning_rate", "validation_loss")
    rows = [[point.get(name) for name in names] + list(point["loss_by_t"].values()) for point in curve]
    return np.array(rows, np.float64)


def deviation(curve: list[dict[str, Any]]) -> float:
    """The largest relative difference of any number from the golden curve's."""
    golden = numbers([json.loads(line) for line in GOLDEN.read_text().splitlines()[: len(curve)]])
    ours = numbers(curve)
    assert np.array_equal(np.isnan(ours), np.isnan(golden))
    return float(np.nanmax(np.abs(ours / golden - 1)))


def test_the_loss_curve_is_the_golden_one(latents: str, tmp_path: Path) -> None:
    curve = points(train_latents(tmp_path, train_config(latents)))
    assert deviation(curve) < TOLERANCE


class Unmirrored(LatentsTask):
    """Always takes the image itself."""

    def fetch(self, positions: np.ndarray) -> list[torch.Tensor]:
        at, _, labels = super().fetch(positions)
        rows = self._rows[self._order(positions)]
        moments = self._data.take(rows, np.zeros_like(rows)).astype(np.float32)
        return [at, torch.from_numpy(moments), labels]

    def _order(self, positions: np.ndarray) -> np.ndarray:
        from ray_dit.core.order import rows_at

        return rows_at(self.config.seed, positions, len(self._rows))


class Undropped(LatentsTask):
    """Never replaces a label by the null class."""

    def setup(self, device: torch.device) -> torch.nn.Module:
        model = super().setup(device)
        shape = self.model_config.model.model_copy(update={"class_dropout_prob": 0.0})
        self.model_config = self.model_config.model_copy(update={"model": shape})
        return model


class Shifted(LatentsTask):
    """Its samples are noisier by a step."""

    def batch(self, fetched: list[torch.Tensor]) -> TrainingBatch:
        made = super().batch(fetched)
        return replace(made, t=(made.t + 1).clamp(max=999))


def adamw(**fields: Any) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 2e-3} | fields)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"optimizer": adamw(learning_rate=2e-3 * 1.01)}, LatentsTask),
        ({"optimizer": adamw(betas=(0.9, 0.9995))}, LatentsTask),
        ({"optimizer": adamw(betas=(0.91, 0.999))}, LatentsTask),
        ({"optimizer": adamw(weight_decay=0.01)}, LatentsTask),
        ({"ema_decay": 0.71}, LatentsTask),
        ({"validation_rows": 11}, LatentsTask),
        ({}, Unmirrored),
        ({}, Undropped),
        ({}, Shifted),
    ],
    ids=["rate", "beta2", "beta1", "decay", "average", "rows", "mirror", "dropout", "t"],
)
def test_a_change_of_the_training_is_seen(
    fields: dict[str, Any], kind: type[LatentsTask], latents: str, tmp_path: Path
) -> None:
    fewer = train_config(latents, steps=30, **fields)
    try:
        changed = deviation(points(train_latents(tmp_path, fewer, kind)))
    except AssertionError:  # other samples fall in other ranges of t
        return
    assert changed > 10 * TOLERANCE


def plain_loss(model: DiT, batch: TrainingBatch) -> torch.Tensor:
    """The mean loss of Peebles & Xie's recipe, from the formulas, in float64 but for the model."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    beta, bar, bar_before = (values[batch.t][:, None, None, None] for values in (betas, bars, before))
    x_start, noise = batch.x_start.double(), batch.noise.double()
    x_t = bar.sqrt() * x_start + (1 - bar).sqrt() * noise
    eps, share = model(x_t.float(), batch.t, batch.y).double().chunk(2, dim=1)
    mse = (eps - noise).square().mean(dim=(1, 2, 3))
    # the bound trains the variance alone
    tilde = beta * (1 - bar_before) / (1 - bar)
    clipped = torch.where(batch.t[:, None, None, None] == 0, (betas * (1 - before) / (1 - bars))[1], tilde)
    first = beta * bar_before.sqrt() / (1 - bar)
    second = (1 - bar_before) * (1 - beta).sqrt() / (1 - bar)
    fixed = eps.detach()
    predicted = (x_t - (1 - bar).sqrt() * fixed) / bar.sqrt()
    true_mean, mean = first * x_start + second * x_t, first * predicted + second * x_t
    share = (share + 1) / 2
    log_variance = share * beta.log() + (1 - share) * clipped.log()
    kl = 0.5 * (
        log_variance - clipped.log() - 1 + (clipped.log() - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )  # fmt: skip
    assert (batch.t > 0).all(), "at t = 0 the bound is another"
    return (mse + kl.mean(dim=(1, 2, 3)) / math.log(2)).mean()


def test_a_step_is_that_of_plain_pytorch(latents: str, tmp_path: Path) -> None:
    """Its gradients, and what AdamW and the average make of them."""
    config = train_config(latents, steps=1, checkpoint_every=1)

    class Moved(LatentsTask):
        """Starts from weights through all of which gradients flow: the paper's hold most of them back."""

        def setup(self, device: torch.device) -> torch.nn.Module:
            model = super().setup(device)
            with torch.no_grad():
                for number, parameter in enumerate(model.parameters()):
                    generator = torch.Generator().manual_seed(number)
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            return model

    task = latents_task(config, tmp_path, Moved)
    cpu = torch.device("cpu")
    ours, plain = task.setup(cpu), task.setup(cpu)
    batch = task.batch(task.fetch(np.arange(8)))
    loss = Passes(task, ours, Alone(), config).gradients([batch])
    expected = plain_loss(plain, batch)  # type: ignore[arg-type]
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    for (name, mine), (_, theirs) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        if mine.grad is None or theirs.grad is None:
            assert name == "pos_embed"
            continue
        assert float((mine.grad - theirs.grad).norm()) <= 1e-6 * float(theirs.grad.norm()), name
        theirs.grad = mine.grad  # Adam's first step is the sign of the gradient, and some are nearly zero

    before = {name: value.detach().clone() for name, value in plain.named_parameters()}
    optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-3, betas=(0.9, 0.999), weight_decay=0.0)
    optimizer.step()
    result = train_latents(tmp_path / "run", config, Moved).result
    for name, value in plain.named_parameters():
        average = 0.1 * before[name] + 0.9 * value.detach()  # the decay of the first step is 1/10
        torch.testing.assert_close(result[name], average, rtol=1e-5, atol=1e-6)


def test_the_loss_curve_of_bfloat16_stays_by_that_of_float32(latents: str, tmp_path: Path) -> None:
    """docs/training.md states the bound."""

    def curve(precision: str) -> np.ndarray:
        config = long_config(latents, precision=precision)
        log = train_latents(tmp_path / precision, config).log
        assert log is not None
        return log

    exact, rounded = curve("float32"), curve("bfloat16")
    assert not np.array_equal(exact, rounded, equal_nan=True)
    np.testing.assert_allclose(rounded[:, 1], exact[:, 1], rtol=0.005)
    np.testing.assert_allclose(rounded[:, 4], exact[:, 4], rtol=0.005)


def long_config(latents: str, **fields: Any) -> TrainConfig:
    known = {"steps": 100, "log_every": 10, "checkpoint_every": 100, "validate_every": 50}
    return train_config(latents, **known | fields)
