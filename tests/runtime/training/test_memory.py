"""What a worker takes, and what is said where it has not got it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_dit.config import TrainConfig, TrainingConfig
from ray_dit.core.memory import Kept
from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.runtime.training.memory import dit_memory, explain_out_of_memory, worker_memory
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, Regression, run

GB = 10**9
SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
XL = TrainConfig(latents="l", output="o", batch_size=256)


def memory(config: TrainingConfig) -> dict[str, int]:
    """Of 10 M parameters and 1 GB per sample, half of that in bfloat16 and a tenth where it is recomputed."""
    per_sample = GB // (2 if config.precision == "bfloat16" else 1)
    if getattr(config, "activation_checkpointing", False):
        per_sample //= 10
    return worker_memory(config, 10**7, Kept(0, per_sample), average=True)


def said(config: TrainingConfig, available: int | None, error: BaseException = SHORT) -> str:
    return str(explain_out_of_memory(error, config, memory, available))


def test_weights_and_what_goes_with_them_are_exact() -> None:
    parts = memory(XL)
    assert parts == {
        "weights": 40_000_000,
        "averaged weights": 40_000_000,
        "moments": 80_000_000,
        "gradients": 40_000_000,
        "activations": 256 * GB,
    }
    shared = memory(XL.model_copy(update={"num_workers": 4, "batches_per_step": 2}))
    assert (shared["gradients"], shared["activations"]) == (80_000_000, 32 * GB)
    assert not worker_memory(XL, 10, Kept(0, 0), average=False)["averaged weights"]


def test_a_real_model_has_these_weights_moments_and_gradients(tmp_path: Path) -> None:
    from ray_dit.config import DiTConfig

    parts = dit_memory(XL, DiTConfig())
    assert parts["weights"] == 4 * 675_129_632
    assert sum(parts[name] for name in ("averaged weights", "moments", "gradients")) == 4 * parts["weights"]


@pytest.mark.parametrize(
    ("available", "advice"),
    [
        (200 * GB, "--batches-per-step 2 it would be about 128.2 GB"),
        (80 * GB, "--batches-per-step 4 it would be about 64.2 GB"),
        (3 * GB, "--batches-per-step 128 it would be about 2.2 GB"),
        (1 * GB, "--activation-checkpointing --batches-per-step 64 it would be about 600.0 MB"),
        (None, "--batches-per-step 2 it would be about 128.2 GB"),
        # it should have fitted: half as much will
        (400 * GB, "--batches-per-step 2 it would be about 128.2 GB"),
    ],
)
def test_the_mildest_setting_that_fits_is_named(available: int | None, advice: str) -> None:
    sentence = said(XL, available)
    assert advice in sentence
    assert "these settings need about 256.2 GB" in sentence
    assert ("it has" in sentence) is (available is not None)


def test_parts_of_a_step_must_be_equal() -> None:
    odd = XL.model_copy(update={"batch_size": 90, "num_workers": 2})  # 45 samples: 3, 5, 9, 15 or 45 parts
    assert "--batches-per-step 3 it would be about 15.2 GB" in said(odd, 20 * GB)
    further = odd.model_copy(update={"batches_per_step": 3})
    assert "--batches-per-step 5 it would be about 9.2 GB" in said(further, 11 * GB)


def test_where_nothing_fits_it_says_so() -> None:
    assert "no setting makes it small enough: take a smaller --model.preset" in said(XL, 10**8)


def test_a_training_that_has_no_such_setting_is_told_of_none() -> None:
    plain = CONFIG.model_copy(update={"batch_size": 1})
    assert "With --precision bfloat16" in said(plain, None)


def test_other_errors_are_not_explained() -> None:
    assert explain_out_of_memory(RuntimeError("shapes differ"), XL, memory, None) is None


@dataclass
class Short(Regression):
    """Runs out of memory in its third step, with as many samples at once as it is given."""

    error: BaseException = SHORT
    most: int = 2

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        if len(positions) > self.most and 2 * CONFIG.batch_size in positions:
            raise self.error
        return super().batch(positions)


HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("error", [SHORT, HOST, MemoryError()])
def test_a_training_ends_with_the_sentence_and_the_setting_works(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(
        UserError, match=r"a worker ran out of memory: .* With --batches-per-step 2 it would be"
    ):
        run(tmp_path / "short", task=Short(error=error))
    assert checkpoint_steps(open_store(str(tmp_path / "short"))) == []
    fits = CONFIG.model_copy(update={"batches_per_step": 2})
    assert run(tmp_path / "fits", fits, Short(error=error)).log is not None


def test_what_is_no_matter_of_memory_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="dead"):
        run(tmp_path, task=Short(error=RuntimeError("dead")))
