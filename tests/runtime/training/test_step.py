"""The passes of a step: several batches, bfloat16, compiled; what stays equal and what stays near."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_dit.config import DiTConfig, OptimizerConfig, TrainingConfig
from ray_dit.core.determinism import make_deterministic
from ray_dit.core.dit import DiT
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.step import Passes
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, CPU, Regression, key_of, read_step, run
from tests.support.compiling import printed_by

SHAPE = DiTConfig(
    input_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=2, num_heads=2, num_classes=3
)


class Denoising(Regression):
    """A tiny DiT on fixed noise: what autocast and the compiler meet in a training."""

    def setup(self, device: torch.device) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(0)
        model = DiT(SHAPE, generator=generator)
        for parameter in model.parameters():  # adaLN-Zero starts as the identity, which rounds nothing
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
        return model.to(device)

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        values = np.sin(np.outer(positions + 1.0, np.arange(1, 33)))
        return torch.from_numpy(values).float().reshape(-1, 2, 4, 4)

    def losses(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        numbers = torch.arange(len(batch))
        eps = model(batch, 10 * numbers, numbers % 3)[:, :2].float()
        return (eps - 2 * batch).square().flatten(1).mean(dim=1)

    def at_checkpoint(self, model: torch.nn.Module, step: int) -> dict[str, bytes]:
        return {}


def gradients(config: TrainingConfig, batches: list[np.ndarray]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step."""
    task = Denoising()
    model = task.setup(CPU)
    passes = Passes(task, model, Alone(), config)
    loss = passes.gradients([task.batch(batch) for batch in batches])
    assert loss.dtype == torch.float32
    return float(loss), {
        name: value.grad for name, value in model.named_parameters() if value.grad is not None
    }


def test_several_batches_have_the_mean_gradient_of_one() -> None:
    positions = np.arange(12)
    loss, whole = gradients(CONFIG, [positions])
    # the task numbers the samples of a batch, so that equal ones are compared
    thirds = [np.arange(0, 12)] * 3
    loss_of_parts, parts = gradients(CONFIG, thirds)
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-7)
    other_loss, others = gradients(CONFIG, [positions, positions + 100])
    assert other_loss != pytest.approx(loss, rel=1e-3)
    mean = gradients(CONFIG, [positions + 100])
    assert other_loss == pytest.approx((loss + mean[0]) / 2, rel=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(others[name], (gradient + mean[1][name]) / 2, rtol=1e-4, atol=1e-6)


def test_a_training_in_parts_is_that_of_whole_steps(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", CONFIG)
    parts = run(tmp_path / "parts", CONFIG.model_copy(update={"batches_per_step": 2}))
    assert parts.seen == whole.seen
    assert whole.log is not None
    assert parts.log is not None
    np.testing.assert_allclose(parts.log, whole.log, rtol=1e-5)


def test_the_batches_of_a_step_must_be_equal() -> None:
    with pytest.raises(ValueError, match="multiple of num_workers 2 times batches_per_step 3: change one"):
        TrainingConfig(output="x", steps=1, batch_size=8, num_workers=2, batches_per_step=3)


def test_bfloat16_rounds_products_and_keeps_weights_and_losses() -> None:
    exact_loss, exact = gradients(CONFIG, [np.arange(8)])
    loss, rounded = gradients(CONFIG.model_copy(update={"precision": "bfloat16"}), [np.arange(8)])
    assert loss != exact_loss
    assert loss == pytest.approx(exact_loss, rel=0.03)
    assert {gradient.dtype for gradient in rounded.values()} == {torch.float32}
    error = sum(float((rounded[name] - exact[name]).square().sum()) for name in exact)
    size = sum(float(gradient.square().sum()) for gradient in exact.values())
    assert 1e-8 < error / size < 1e-2


def test_the_loss_curve_of_bfloat16_stays_by_that_of_float32(tmp_path: Path) -> None:
    longer = CONFIG.model_copy(
        update={"steps": 60, "checkpoint_every": 60, "log_every": 10, "batch_size": 16}
    )
    task = OptimizerConfig(learning_rate=3e-3)
    exact = run(tmp_path / "exact", longer, Denoising(task)).log
    rounded = run(
        tmp_path / "rounded", longer.model_copy(update={"precision": "bfloat16"}), Denoising(task)
    ).log
    assert exact is not None
    assert rounded is not None
    assert exact[-1, 1] < 0.8 * exact[0, 1]
    np.testing.assert_allclose(rounded[:, 1], exact[:, 1], rtol=0.02)


COMPILED = CONFIG.model_copy(update={"compile": True, "precision": "bfloat16"})


def compiled_run(folder: Path) -> str:
    """Trains compiled, in bfloat16, on from what is there; the hash of the last checkpoint."""
    make_deterministic(1)
    run(folder, COMPILED, Denoising())
    store = open_store(str(folder))
    return hashlib.sha256(store.get(key_of(store, 8))).hexdigest()


def in_a_process(folder: Path, cache: Path) -> str:
    """``compiled_run`` in a process of its own."""
    code = (
        "import sys; from tests.runtime.training.test_step import *; print(compiled_run(Path(sys.argv[1])))"
    )
    return printed_by(code, str(folder), cache=cache)


@pytest.mark.slow
def test_compiled_trainings_give_equal_bits_in_processes_of_empty_caches(tmp_path: Path) -> None:
    first = in_a_process(tmp_path / "first", tmp_path / "a-cache")
    assert in_a_process(tmp_path / "second", tmp_path / "another-cache") == first
    store = open_store(str(tmp_path / "second"))
    store.delete(key_of(store, 8))
    assert in_a_process(tmp_path / "second", tmp_path / "a-cache") == first, "resumed in other bits"
    near = run(tmp_path / "near", COMPILED.model_copy(update={"compile": False}), Denoising()).log
    assert near is not None
    np.testing.assert_allclose(read_step(store, 8)[0]["log"].numpy(), near, rtol=0.02)
