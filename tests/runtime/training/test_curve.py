"""What becomes a point of the loss curve, and the validation loss in it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_dit.config import OptimizerConfig
from ray_dit.core.train_step import gradient_norm
from ray_dit.folders.checkpoints import checkpoint_key
from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes
from ray_dit.runtime.training.curve import Sums
from ray_dit.runtime.training.parallel import Alone
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, CPU, Regression, at_half, forget, read_step, run, same


@dataclass
class Ranged(Regression):
    """Half of the samples are of small t; the held-out ones are those below position 5."""

    t_ranges: tuple[str, ...] = ("0-4", "5-9", "never")
    judged: list[int] = field(default_factory=lambda: [])

    def t_range(self, batch: torch.Tensor) -> torch.Tensor:
        return (batch[:, 0] > 0).long()

    def heldout(self, step: int, size: int) -> Iterator[torch.Tensor]:
        if step % 4:
            return
        self.judged.append(step)
        for first in range(0, 5, size):
            positions = np.arange(first, min(first + size, 5))
            yield torch.from_numpy(np.sin(np.outer(positions + 1, [1.0, 2.0, 3.0]))).float()


def test_the_points_are_those_of_plain_sums(tmp_path: Path) -> None:
    rates = OptimizerConfig(learning_rate=0.01, schedule="cosine")
    log = run(tmp_path, task=Ranged(rates)).log
    assert log is not None
    assert log.shape == (4, 5 + 3)

    task = Ranged(rates)
    model = task.setup(CPU)
    from ray_dit.core.train_step import learning_rate, make_optimizer

    optimizer = make_optimizer(model, rates)
    losses, norms, ranges, rows = [], [], [], []
    for step in range(8):
        optimizer.param_groups[0]["lr"] = learning_rate(rates, step, 8)
        batch = task.batch(np.arange(4 * step, 4 * step + 4))
        optimizer.zero_grad()
        each = task.losses(model, batch)
        each.mean().backward()
        losses += each.tolist()
        ranges += task.t_range(batch).tolist()
        norms.append(float(gradient_norm(model)))
        optimizer.step()
        if step % 2:
            by_t = [np.mean([x for x, r in zip(losses, ranges, strict=True) if r == k]) for k in range(2)]
            rows.append([step + 1, np.mean(losses), np.mean(norms), learning_rate(rates, step, 8), *by_t])
            losses, norms, ranges = [], [], []
    np.testing.assert_allclose(log[:, [0, 1, 2, 3, 5, 6]], np.array(rows), rtol=1e-6)
    assert np.isnan(log[:, 7]).all()
    assert np.isnan(log[[0, 2], 4]).all()
    assert np.isfinite(log[[1, 3], 4]).all()


def test_the_validation_loss_is_that_of_the_averaged_weights(tmp_path: Path) -> None:
    task = run(tmp_path, task=Ranged())
    assert isinstance(task, Ranged)
    assert task.judged == [4, 8]
    assert task.log is not None
    tensors, _ = read_step(open_store(str(tmp_path)), 8)
    model = task.setup(CPU)
    batch = next(task.heldout(8, 5))
    for kind, same_loss in (("ema", True), ("model", False)):
        prefix = f"{kind}."
        model.load_state_dict(
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        )
        loss = task.losses(model, batch).detach().double().mean().item()
        assert bool(loss == pytest.approx(task.log[-1, 4], rel=1e-6)) is same_loss


def test_it_changes_nothing_of_the_training_and_a_resumed_run_has_the_same_points(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", task=Ranged())
    plain = run(tmp_path / "plain")
    assert all(torch.equal(value, plain.result[name]) for name, value in whole.result.items())
    run(tmp_path / "half", task=Ranged())
    store = open_store(str(tmp_path / "half"))
    forget(store, 8)
    resumed = run(tmp_path / "half", task=Ranged())
    assert isinstance(resumed, Ranged)
    assert resumed.judged == [8]
    assert same(whole, resumed)


def test_the_first_worker_alone_validates(tmp_path: Path) -> None:
    second = run(tmp_path, task=Ranged(), parallel=Alone(rank=1, world_size=2))
    assert isinstance(second, Ranged)
    assert second.judged == []


def test_a_step_never_waits_for_the_device() -> None:
    """A fake tensor has no value: whatever asks for one, as what brings it to the host does, raises."""
    with FakeTensorMode():
        sums = Sums(3, CPU)
        sums.add_samples(torch.tensor([0, 2, 2]), torch.rand(3))
        sums.add_step(torch.rand(()), torch.rand(()))
        with pytest.raises(Exception, match="_local_scalar_dense|tolist"):
            sums.take(Alone())


def test_workers_take_the_mean_over_the_samples_of_all() -> None:
    class Twice(Alone):
        """The other worker has what this one has, and a loss of its own in the third range."""

        def means(self, values: torch.Tensor) -> list[float]:
            others = values.clone()
            others[2 + 2] += 6.0
            others[2 + 3 + 2] += 2.0
            return ((values + others) / 2).tolist()

    sums = Sums(3, CPU)
    for step in range(2):
        sums.add_samples(torch.tensor([0, 0]), torch.tensor([1.0, 2.0 + step]))
        sums.add_step(torch.tensor(1.0 + step), torch.tensor(3.0))
    loss, norm, by_t = sums.take(Twice())
    assert (loss, norm) == (1.5, 3.0)
    assert by_t[0] == pytest.approx((1 + 2 + 1 + 3) / 4)
    assert math.isnan(by_t[1])
    assert by_t[2] == 3.0
    sums.add_step(torch.tensor(5.0), torch.tensor(1.0))
    assert sums.take(Alone())[:2] == (5.0, 1.0)


def test_a_checkpoint_of_before_goes_on_with_what_it_has(tmp_path: Path) -> None:
    store = at_half(tmp_path)
    tensors, _ = read_step(store, 4)
    tensors["log"] = tensors["log"][:, :2].contiguous()
    for info in [*store.list("checkpoints/"), *store.list("_plain/"), *store.list("_runs/made/")]:
        store.delete(info.key)
    store.put(checkpoint_key(4), checkpoint_bytes(tensors, CheckpointFacts(step=4)))
    resumed, whole = run(tmp_path), run(tmp_path.parent / "whole")
    assert resumed.log is not None
    assert whole.log is not None
    np.testing.assert_array_equal(resumed.log[:, :2], whole.log[:, :2])
    assert np.isnan(resumed.log[:2, 2:]).all()
    np.testing.assert_array_equal(resumed.log[2:], whole.log[2:])
    again = read_step(store, CONFIG.steps)[0]["log"]
    assert again.shape == (4, 5)
