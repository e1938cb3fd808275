"""Ray Train around a worker: what it tries again, and what it tells the user instead."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ray_dit.config import TrainingConfig
from ray_dit.errors import UserError
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.launch import Intervals, run_training
from ray_dit.storage.open import open_store
from tests.runtime.training import regression
from tests.runtime.training.regression import CONFIG, Regression, picture_of, read_step, run

pytestmark = pytest.mark.ray


@dataclass
class Dying(Regression):
    """Its first worker dies in step 6, which the checkpoint of step 4 comes before.

    Leaves a file each time it starts.
    """

    folder: Path = Path()

    def setup(self, device: torch.device) -> nn.Module:
        (self.folder / f"start-{len(list(self.folder.glob('start-*')))}").touch()
        return super().setup(device)

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        if 5 * CONFIG.batch_size in positions and len(list(self.folder.glob("start-*"))) == 1:
            raise RuntimeError("dead")
        return super().batch(positions)


@dataclass
class Refusing(Dying):
    """Needs something of the user."""

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        raise UserError("none of the pictures can be read: mount the disk")


@dataclass
class Mistaken(Dying):
    """Meets data that its code was not made for; the first of two workers, whom the other waits for."""

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        if 5 * CONFIG.batch_size in positions:
            raise ValueError("need at least one array to concatenate")
        return super().batch(positions)


@pytest.fixture(scope="module")
def ray(one_ray: Any) -> Any:
    """A Ray whose workers, which cannot import the tests, are sent the tasks' code."""
    for module in (regression, sys.modules[__name__]):
        one_ray.cloudpickle.register_pickle_by_value(module)
    return one_ray


def train(ray: Any, folder: Path, task: Regression, config: TrainingConfig = CONFIG) -> None:
    job = Job.open(open_store(str(folder)), "train", {"test": True})
    run_training(ray, config, job, task, "train", intervals=Intervals(notice=0.0))


def test_workers_that_die_are_started_again_and_go_on_from_the_checkpoint(ray: Any, tmp_path: Path) -> None:
    train(ray, tmp_path / "dying", Dying(folder=tmp_path))
    assert len(list(tmp_path.glob("start-*"))) == 2
    run(tmp_path / "whole")
    dying, whole = (open_store(str(tmp_path / name)) for name in ("dying", "whole"))
    for step in (4, 8):
        ours, theirs = (read_step(store, step)[0] for store in (dying, whole))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():  # the curve has NaN where nothing is judged
            np.testing.assert_array_equal(value.numpy(), theirs[name].numpy(), err_msg=name)
        assert dying.get(picture_of(dying, step)) == whole.get(picture_of(whole, step))


def test_what_the_user_must_change_is_said_and_not_tried_again(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mount the disk"):
        train(ray, tmp_path / "run", Refusing(folder=tmp_path))
    assert len(list(tmp_path.glob("start-*"))) == 1


def test_an_error_that_would_come_again_is_not_tried_again(ray: Any, tmp_path: Path) -> None:
    two = CONFIG.model_copy(update={"num_workers": 2})
    with pytest.raises(RuntimeError, match=r"would come again:\n(.|\n)*ValueError: need at least one array"):
        train(ray, tmp_path / "run", Mistaken(folder=tmp_path), two)
    assert len(list(tmp_path.glob("start-*"))) <= 2


RANGE = CONFIG.model_copy(update={"num_workers": "2..3"})


def test_of_a_range_the_most_that_share_the_batch_train_and_the_others_wait(ray: Any, tmp_path: Path) -> None:
    """Ray has room for three, of which two share a batch of four; all are asked for notices."""
    train(ray, tmp_path / "run", Regression(), RANGE)
    tensors, facts = read_step(open_store(str(tmp_path / "run")), CONFIG.steps)
    assert [(each.first, each.workers) for each in facts.history] == [(0, 2)]
    alone = run(tmp_path / "alone").log
    assert alone is not None
    np.testing.assert_allclose(tensors["log"].numpy()[:, :2], alone[:, :2], rtol=1e-5)


def test_idle_workers_leave_where_the_others_fail(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"would come again:\n(.|\n)*ValueError: need at least one array"):
        train(ray, tmp_path / "run", Mistaken(folder=tmp_path), RANGE)
