"""Checkpoints in the job's folder: which are made, which stay, and what a damaged one says."""

import shutil
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from ray_dit.config import OptimizerConfig
from ray_dit.errors import Damaged, UserError
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.checkpointer import JobCheckpointer, checkpoints_due
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.state import TrainingState
from ray_dit.runtime.training.worker import resume, train_worker
from ray_dit.storage.local import LocalStore
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.runtime.training.regression import CONFIG, CPU, Regression, key_of, run, same, saved


def checkpointer(folder: Path, *, every: int = 4, last: int = 10, keep: int = 2) -> JobCheckpointer:
    return JobCheckpointer(Job.open(open_store(str(folder)), "train", {"test": True}), every, last, keep)


def state(step: int) -> TrainingState:
    made = TrainingState.initial(Regression().setup(CPU), OptimizerConfig(), None)
    made.step = step
    return made


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path, CONFIG.model_copy(update={"steps": 16}))
    assert checkpoint_steps(open_store(str(tmp_path))) == [12, 16]


def test_every_so_many_steps_and_at_the_end_one_is_due(tmp_path: Path) -> None:
    assert [step for step in range(1, 11) if checkpointer(tmp_path).is_due(step)] == [4, 8, 10]


@pytest.mark.parametrize(("steps", "due"), [(0, 0), (9, 0), (10, 1), (24, 2), (25, 3)])
def test_checkpoints_come_every_so_many_steps_and_at_the_end(tmp_path: Path, steps: int, due: int) -> None:
    assert checkpoints_due(CONFIG.model_copy(update={"steps": 25, "checkpoint_every": 10}), steps) == due
    each = checkpointer(tmp_path, every=10, last=25)
    assert sum(each.is_due(step) for step in range(1, steps + 1)) == due


def test_the_newest_is_restored_and_as_many_as_asked_for_are_kept(tmp_path: Path) -> None:
    some = checkpointer(tmp_path, keep=3)
    assert some.found() == []
    for step in (2, 4, 6, 8):
        some.save(state(step))
    some.close()
    assert checkpoint_steps(some.job.store) == [4, 6, 8]
    assert [found.step for found in some.found()] == [8, 6, 4]
    other = state(0)
    other.restore(*some.read(saved(some.job.store, 6)))
    assert other.step == 6


def test_what_a_killed_start_did_not_prune_goes_at_the_end(tmp_path: Path) -> None:
    some = checkpointer(tmp_path, keep=3)
    for step in (2, 4, 6):
        some.save(state(step))
    some.close()
    checkpointer(tmp_path).finish(())
    assert checkpoint_steps(some.job.store) == [4, 6]


def damage(store: Store, step: int) -> None:
    """Flips the lowest bit of the last byte: of a number, which no parser would notice."""
    key = key_of(store, step)
    data = store.get(key)
    store.delete(key)
    store.put(key, flipped(data))


CONSTANT = OptimizerConfig(learning_rate=0.01)


def extended_only(store: Store, notes: list[str] | None = None) -> Regression:
    """The extension to 14 steps of a finished run of 7."""
    job, task = Job(store, "train", "extension", generation=1), Regression(CONSTANT)
    config, told = CONFIG.model_copy(update={"steps": 14}), [] if notes is None else notes
    train_worker(
        task, config, job, device=CPU, parallel=Alone(), show=lambda _: None, tell=told.append, ends=(7,)
    )
    return task


def extended(folder: Path) -> Regression:
    """A run of 7 steps and its extension, which is returned."""
    run(folder, CONFIG.model_copy(update={"steps": 7}), Regression(CONSTANT))
    return extended_only(open_store(str(folder)))


def test_an_extension_goes_on_from_the_end_and_leaves_what_is_there(tmp_path: Path) -> None:
    task = extended(tmp_path)
    assert task.seen == list(range(7 * 4, 14 * 4))
    store = open_store(str(tmp_path))
    assert (checkpoint_steps(store), checkpoint_steps(store, "g01-")) == ([4, 7], [12, 14])
    whole = run(tmp_path / "whole", CONFIG.model_copy(update={"steps": 14}), Regression(CONSTANT))
    assert all(torch.equal(value, whole.result[name]) for name, value in task.result.items())
    assert task.log is not None
    assert task.log[:, 0].tolist() == [2, 4, 6, 7, 8, 10, 12, 14]


@pytest.mark.parametrize(("end", "due"), [(7, [8, 12, 14]), (8, [12, 14])])
def test_of_steps_that_were_done_before_no_checkpoint_is_due(
    tmp_path: Path, end: int, due: list[int]
) -> None:
    some = replace(checkpointer(tmp_path, last=14), ends=(end,))
    assert [step for step in range(1, 15) if some.is_due(step)] == due


@pytest.mark.parametrize("harm", ["gone", "flipped", "both flipped"])
def test_an_extension_whose_start_is_damaged_goes_on_from_before(tmp_path: Path, harm: str) -> None:
    whole = extended(tmp_path / "whole")
    store = open_store(str(tmp_path / "run"))
    shutil.copytree(tmp_path / "whole", store.uri)
    for info in [*store.list("checkpoints/g01"), *store.list("_plain-g01/")]:
        store.delete(info.key)
    if harm == "gone":
        store.delete(key_of(store, 7))
    else:
        damage(store, 7)
    if harm == "both flipped":
        damage(store, 4)
        with pytest.raises(
            UserError, match=r"none of the 2 .*: restore one from a copy, or take another out"
        ):
            extended_only(store)
        return
    before = {info.key: info.etag for info in store.list("checkpoints/")}
    notes: list[str] = []
    resumed = extended_only(store, notes)
    assert notes == [
        "the checkpoint of step 7 is gone or damaged, so the training goes on from that of step 4, to the "
        "same result"
    ]
    assert resumed.seen == list(range(4 * 4, 14 * 4))
    assert same(whole, resumed)
    assert before.items() <= {info.key: info.etag for info in store.list("checkpoints/")}.items()
    assert checkpoint_steps(store, "g01-") == [12, 14]


@pytest.mark.parametrize("whole", [True, False])
def test_from_a_damaged_checkpoint_the_run_falls_back_and_says_so(tmp_path: Path, whole: bool) -> None:
    undisturbed = run(tmp_path / "whole")
    run(tmp_path / "run")
    store = open_store(str(tmp_path / "run"))
    if whole:
        damage(store, 8)
    else:  # cut short
        key = key_of(store, 8)
        store.delete(key)
        store.put(key, b"rubbish")
    notes: list[str] = []
    resumed = run(tmp_path / "run", told=notes)
    assert notes == ["the checkpoint of step 8 was damaged and is made anew, from that of step 4 on"]
    assert resumed.seen == list(range(4 * 4, 8 * 4))
    assert same(undisturbed, resumed)
    assert store.get(key_of(store, 8)) == open_store(str(tmp_path / "whole")).get(key_of(store, 8))


def test_of_an_earlier_version_only_what_can_not_be_parsed_is_known_as_damaged(tmp_path: Path) -> None:
    run(tmp_path)
    store = open_store(str(tmp_path))
    key = key_of(store, 8)
    for each in (key, f"_plain/{key}.json"):
        store.delete(each)
    store.put(key, b"rubbish")
    notes: list[str] = []
    run(tmp_path, told=notes)
    assert len(notes) == 1


def test_without_a_whole_checkpoint_nothing_is_deleted(tmp_path: Path) -> None:
    run(tmp_path)
    store = open_store(str(tmp_path))
    damage(store, 4)
    damage(store, 8)
    with pytest.raises(UserError, match=r"none of the 2 checkpoints is whole .*step-00000008.*restore"):
        run(tmp_path)
    assert checkpoint_steps(store) == [4, 8]


def test_what_one_worker_can_not_read_none_goes_on_from(tmp_path: Path) -> None:
    class OtherWorkerFails(Alone):
        """Of two workers, the other one can't read the first checkpoint it is told."""

        asked = 0

        def mean(self, value: torch.Tensor) -> float:
            type(self).asked += 1
            return 0.5 if self.asked == 1 else float(value)

    run(tmp_path)
    job = Job.open(open_store(str(tmp_path)), "train", {"test": True})
    restored = state(0)
    resume(restored, JobCheckpointer(job, 4, 8), OtherWorkerFails())
    assert restored.step == 4


@dataclass(frozen=True)
class Slow(LocalStore):
    """Storage that lets a checkpoint in when the test says so, and may give back another one."""

    may_write: threading.Event = field(default_factory=threading.Event)
    changes: threading.Event = field(default_factory=threading.Event)

    def put(self, key: str, data: bytes) -> bool:
        if key.startswith("checkpoints/"):
            assert self.may_write.wait(60)
            data = flipped(data) if self.changes.is_set() else data
        return super().put(key, data)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_training_goes_on_while_a_checkpoint_is_written_but_not_past_the_next(tmp_path: Path) -> None:
    store, times = Slow(str(tmp_path)), iter(range(100))
    some = JobCheckpointer(Job.open(store, "train", {"test": True}), 2, 10, clock=lambda: next(times))
    first = state(2)
    some.save(first)
    wanted = {name: value.clone() for name, value in first.tensors().items()}
    for parameter in first.model.parameters():
        parameter.data.zero_()  # the next step is under way
    assert checkpoint_steps(store) == []
    threading.Timer(0.2, store.may_write.set).start()
    some.save(state(4))
    assert checkpoint_steps(store)[0] == 2, "the one before is written first"
    some.close()
    assert some.stalled == 2
    read, _ = some.read(saved(store, 2))
    assert all(torch.equal(read[name], value) for name, value in wanted.items())


def test_no_checkpoint_is_pruned_for_one_that_storage_has_changed(tmp_path: Path) -> None:
    store = Slow(str(tmp_path))
    store.may_write.set()
    some = JobCheckpointer(Job.open(store, "train", {"test": True}), 2, 10)
    for step in (2, 4):
        some.save(state(step))
    some.close()
    store.changes.set()
    some.save(state(6))
    with pytest.raises(Damaged, match="step-00000006.safetensors is not what was written a moment ago"):
        some.finish(())
    assert checkpoint_steps(store) == [2, 4, 6]
