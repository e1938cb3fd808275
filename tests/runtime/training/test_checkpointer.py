"""Checkpoints in the job's folder: which are made, which stay, and what a damaged one says."""

from pathlib import Path

import pytest

from ray_dit.config import OptimizerConfig
from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import checkpoint_key, checkpoint_steps
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.checkpointer import JobCheckpointer
from ray_dit.runtime.training.state import TrainingState
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, CPU, Regression, at_half, run


def checkpointer(folder: Path, *, every: int = 4, last: int = 10, keep: int = 2) -> JobCheckpointer:
    return JobCheckpointer(Job.open(open_store(str(folder)), "train", {"test": True}), every, last, keep)


def state(step: int) -> TrainingState:
    made = TrainingState.initial(Regression().setup(CPU, True), OptimizerConfig(), None)
    made.step = step
    return made


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path, CONFIG.model_copy(update={"steps": 16}))
    assert checkpoint_steps(open_store(str(tmp_path))) == [12, 16]


def test_every_so_many_steps_and_at_the_end_one_is_due(tmp_path: Path) -> None:
    assert [step for step in range(1, 11) if checkpointer(tmp_path).is_due(step)] == [4, 8, 10]


def test_the_newest_is_restored_and_as_many_as_asked_for_are_kept(tmp_path: Path) -> None:
    some = checkpointer(tmp_path, keep=3)
    assert some.newest() == 0
    for step in (2, 4, 6, 8):
        some.save(state(step))
    assert checkpoint_steps(some.job.store) == [4, 6, 8]
    assert some.newest() == 8
    other = state(0)
    some.restore(other, 6)
    assert other.step == 6


def test_what_a_killed_start_did_not_prune_goes_at_the_end(tmp_path: Path) -> None:
    some = checkpointer(tmp_path, keep=3)
    for step in (2, 4, 6):
        some.save(state(step))
    checkpointer(tmp_path).finish()
    assert checkpoint_steps(some.job.store) == [4, 6]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    store = at_half(tmp_path)
    store.delete(checkpoint_key(4))
    store.put(checkpoint_key(4), b"rubbish")
    with pytest.raises(UserError, match=r"checkpoint .*step-00000004.* is damaged"):
        run(tmp_path)
