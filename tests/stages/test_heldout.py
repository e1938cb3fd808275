"""The validation loss of `ray-dit train`: which rows, when, and the same every time. Without Ray."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_dit.config import TrainConfig
from ray_dit.core.batch import TrainingBatch
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import key_of
from tests.support.latents_task import (
    HELD_OUT,
    LatentsTask,
    latents_task,
    points,
    train_config,
    train_latents,
    write_latents,
)


@pytest.fixture
def latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAY_DIT_CACHE", str(tmp_path / "cache"))
    return write_latents(tmp_path / "latents")


def ready(config: TrainConfig, folder: Path) -> LatentsTask:
    task = latents_task(config, folder)
    task.setup(torch.device("cpu"))
    return task


def joined(batches: list[TrainingBatch]) -> tuple[torch.Tensor, ...]:
    parts = zip(*((b.x_start, b.t, b.noise, b.y) for b in batches), strict=True)
    return tuple(torch.cat(values) for values in parts)


def test_all_that_is_held_out_is_judged_the_same_every_time(latents: str, tmp_path: Path) -> None:
    task = ready(train_config(latents), tmp_path)
    whole = joined(list(task.heldout(10, 100)))
    again = joined(list(task.heldout(20, 5)))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    x_start, t, _, labels = whole
    assert len(x_start) == HELD_OUT
    assert sorted(t.tolist()) == [(2 * place + 1) * 1000 // (2 * HELD_OUT) for place in range(HELD_OUT)]
    assert labels.tolist() == [0, 1, 2] * 4, "no label is dropped"
    # the mean of a class's latents is its number, and that of mirror images 2 less
    raw = x_start / task.model_config.latents.scale[0] + task.model_config.latents.shift[0]  # type: ignore[index]
    np.testing.assert_allclose(raw.mean(dim=(1, 2, 3)).numpy(), labels.numpy(), atol=0.3)


def test_some_of_many_rows_lie_evenly_over_them(latents: str, tmp_path: Path) -> None:
    task = ready(train_config(latents, validation_rows=4), tmp_path)
    ((_, t, _, labels),) = [joined(list(task.heldout(10, 100)))]
    assert len(t) == 4
    assert labels.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"validate_every": None}, [50]),
        ({"validate_every": None, "checkpoint_every": 20}, [20, 40, 50]),
        ({"validate_every": 30}, [30, 50]),
        ({"validate_every": 0}, []),
    ],
)
def test_it_is_due_at_checkpoints_or_as_often_as_asked_and_at_the_end(
    fields: dict[str, int | None], steps: list[int], latents: str, tmp_path: Path
) -> None:
    task = ready(train_config(latents, **fields), tmp_path)
    assert [step for step in range(1, 51) if list(task.heldout(step, 8))] == steps


def test_it_must_fall_on_a_point_of_the_curve(latents: str) -> None:
    with pytest.raises(ValueError, match="validate_every 15 is not a multiple of log_every 10"):
        train_config(latents, log_every=10, validate_every=15)


def test_nothing_held_out_has_no_validation_loss(latents: str, tmp_path: Path) -> None:
    task = ready(train_config(latents), tmp_path)
    task._data.heldout[:] = False  # pyright: ignore[reportPrivateUsage]
    assert list(task.heldout(50, 8)) == []


def test_a_resumed_training_has_the_same_validation_losses(latents: str, tmp_path: Path) -> None:
    config = train_config(latents, steps=20, checkpoint_every=10, validate_every=5)
    whole = train_latents(tmp_path / "whole", config)
    train_latents(tmp_path / "half", config)
    store = open_store(str(tmp_path / "half"))
    store.delete(key_of(store, 20))
    resumed = train_latents(tmp_path / "half", config)
    assert whole.log is not None
    assert resumed.log is not None
    np.testing.assert_array_equal(resumed.log, whole.log)
    steps = [point["step"] for point in points(whole) if "validation_loss" in point]
    assert steps == [5, 10, 15, 20]
