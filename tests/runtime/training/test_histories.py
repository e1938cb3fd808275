"""Runs that other workers go on with: what is noted of it, and that the folder ends whole.

Another kind of machine stands for other workers; its bits are made others by scaling the inputs a little.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_dit.config import TrainingConfig
from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import Checkpoint, checkpoint_key, passing_checkpoints
from ray_dit.formats.checkpoint import checkpoint_bytes
from ray_dit.formats.worker_history import History, Segment, history_hash, keyed
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import plain_objects
from ray_dit.ledger.results import Result
from ray_dit.ledger.writers import HashAlarm
from ray_dit.results import Trained
from ray_dit.runtime.training.checkpointer import JobCheckpointer, checkpoints_kept
from ray_dit.runtime.training.data import StepBatches
from ray_dit.runtime.training.loop import train_steps
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.restoring import damaged_results, to_restore
from ray_dit.runtime.training.state import TrainingState
from ray_dit.runtime.training.worker import train_worker
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.runtime.training.regression import (
    CONFIG,
    CPU,
    Ending,
    at_half,
    key_of,
    read_step,
    run,
    saved,
)
from tests.support.tiny import contents, flip_bit

OURS = Alone(kind=lambda: "ours")
THEIRS = Alone(kind=lambda: "theirs")
OTHER_BITS = 1.0 + 2.0**-20


def segments(*each: tuple[int, str]) -> History:
    return tuple(Segment(first=first, workers=1, kind=kind) for first, kind in each)


def other() -> Ending:
    """As ``Ending`` on another kind of machine."""
    return Ending(scale=OTHER_BITS)


def begun(folder: Path) -> Job:
    return Job.open(open_store(str(folder)), "train", {"test": True})


def manifest_of(folder: Path) -> Trained:
    manifest = begun(folder).manifest(Trained)
    assert manifest is not None
    return manifest.facts


def unfinished(folder: Path) -> None:
    """As where the driver was killed ahead of the run's manifest."""
    for key in ("manifest.json", "manifest/objects.jsonl", "manifest/plain.jsonl"):
        (folder / key).unlink()


def is_whole(folder: Path) -> None:
    """AssertionError unless every object is as its marker says, and none is left over."""
    store = open_store(str(folder))
    assert list(verify(store)) == []
    manifest = begun(folder).manifest(Trained)
    assert manifest is not None
    listed = {marker.key for marker in plain_objects(store, manifest)} | {"weights"}
    assert listed == {info.key for info in store.list() if not info.key.startswith(("_", "manifest"))}


# What is noted


def test_the_same_workers_add_no_segment_and_others_one(tmp_path: Path) -> None:
    for name, parallel, history in (
        ("same", OURS, segments((0, "ours"))),
        ("others", THEIRS, segments((0, "ours"), (4, "theirs"))),
    ):
        run(tmp_path / name, CONFIG.model_copy(update={"steps": 4}), parallel=OURS)
        resumed = run(tmp_path / name, parallel=parallel)
        store = open_store(str(tmp_path / name))
        assert resumed.seen == list(range(4 * 4, 8 * 4))
        assert resumed.history == history
        assert read_step(store, 4)[1].history == segments((0, "ours"))
        assert read_step(store, 8)[1].history == history
        assert key_of(store, 8) == f"checkpoints/step-00000008-{history_hash(history)}.safetensors"
        assert store.head(keyed("picture-8", history)) is not None


def test_a_start_with_nothing_left_to_train_adds_none(tmp_path: Path) -> None:
    whole = run(tmp_path, parallel=OURS)
    assert run(tmp_path, parallel=THEIRS).history == whole.history == segments((0, "ours"))


def test_the_same_bytes_must_come_at_the_same_key_and_only_there(tmp_path: Path) -> None:
    run(tmp_path, task=Ending(), parallel=OURS)
    unfinished(tmp_path)
    store = open_store(str(tmp_path))
    begun(tmp_path).plain.drop(key_of(store, 8))
    with pytest.raises(HashAlarm, match="step-00000008.* came out differently"):
        run(tmp_path, task=other(), parallel=OURS)
    run(tmp_path, task=other(), parallel=THEIRS)
    is_whole(tmp_path)


# Another chain wins


def contents_of_job(folder: Path) -> dict[str, str]:
    """As ``contents``, without what a test has below it."""
    return {key: sha256 for key, sha256 in contents(folder).items() if not key.startswith("killed/")}


@pytest.mark.parametrize("died", ["after the model", "after the results", "at the last checkpoint"])
def test_the_newest_checkpoint_damaged_and_on_with_others(tmp_path: Path, died: str) -> None:
    """A driver died late, its newest checkpoint got damaged, and other workers went on to the end."""
    run(tmp_path, task=Ending(), parallel=OURS)
    lost = segments((0, "ours"))
    unfinished(tmp_path)
    if died != "after the results":
        begun(tmp_path).plain.drop(keyed("loss.json", lost))
    if died == "at the last checkpoint":
        for key in ("weights", "_markers/weights.json", f"_plain/{checkpoint_key(8, '', lost)}.json"):
            (tmp_path / key).unlink()
        (tmp_path / checkpoint_key(8, "", lost)).write_bytes(b"cut sh")
    else:
        flip_bit(tmp_path / checkpoint_key(8, "", lost))
    notes: list[str] = []
    resumed = run(tmp_path, task=other(), parallel=THEIRS, told=notes)
    assert notes == ["the checkpoint of step 8 was damaged and is made anew, from that of step 4 on"]
    assert manifest_of(tmp_path).history == resumed.history == segments((0, "ours"), (4, "theirs"))
    is_whole(tmp_path)
    with pytest.raises(Killed):
        run(tmp_path / "killed", task=Leaving(dies_in=5), parallel=OURS)
    run(tmp_path / "killed", task=other(), parallel=THEIRS)
    assert contents(tmp_path / "killed") == contents_of_job(tmp_path)


def test_of_two_at_once_the_first_manifest_counts(tmp_path: Path) -> None:
    """Runs of other workers in one folder at the same moment: the later one leaves what the first made."""

    @dataclass
    class Overtaken(Ending):
        """While its second step is under way another run trains to the end."""

        def batch(self, positions: np.ndarray) -> torch.Tensor:
            if CONFIG.batch_size in positions:
                run(tmp_path, task=Ending(), parallel=OURS)
                self.before = contents(tmp_path)
            return super().batch(positions)

    task, notes = Overtaken(scale=OTHER_BITS), list[str]()
    run(tmp_path, CONFIG.model_copy(update={"keep_last": 1}), task, parallel=THEIRS, told=notes)
    assert notes == [
        "another run has finished this training meanwhile, with 1 worker (ours) from step 0: its result stays"
    ]
    assert contents(tmp_path) == task.before
    is_whole(tmp_path)


# Folders of earlier versions


def earlier(folder: Path, steps: int) -> None:
    """Trains as versions did that noted no history, and ends the run where all steps are done."""
    job, task = begun(folder), Ending()
    state = TrainingState.initial(task.setup(CPU), task.optimizer, task.ema_decay)
    keeper = JobCheckpointer(job, CONFIG.checkpoint_every, CONFIG.steps)
    config = CONFIG.model_copy(update={"steps": steps})
    data = StepBatches(task, CONFIG.batch_size)
    train_steps(
        state, task, config, job, data=data, parallel=Alone(), checkpointer=keeper, report=lambda _: None
    )  # fmt: skip
    keeper.close()
    if steps == CONFIG.steps:
        keeper.finish(())
        with state.averaged() as model:
            task.finish(model, np.array(state.log), job, ())


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    earlier(tmp_path, 4)
    assert (tmp_path / "checkpoints/step-00000004.safetensors").exists()
    # its learning rate is that of a shorter run: only where it goes on is looked at
    resumed = run(tmp_path, task=Ending(), parallel=OURS)
    assert resumed.seen == list(range(4 * 4, 8 * 4))
    assert manifest_of(tmp_path).history == segments((4, "ours"))
    assert (tmp_path / "checkpoints/step-00000004.safetensors").exists()
    is_whole(tmp_path)


@pytest.mark.parametrize("damaged", ["weights", "and the last checkpoint"])
def test_what_an_earlier_version_finished_is_made_again_at_its_keys(tmp_path: Path, damaged: str) -> None:
    earlier(tmp_path, 8)
    before = contents(tmp_path)
    assert "loss.json" in before
    flip_bit(tmp_path / "weights")
    if damaged != "weights":
        flip_bit(tmp_path / "checkpoints/step-00000008.safetensors")
    restore(tmp_path, Ending(), OURS)
    assert contents(tmp_path) == before


# A finished training whose results are damaged


def restore(folder: Path, task: Ending, parallel: Alone, config: TrainingConfig = CONFIG) -> None:
    """What the stage does where results of a finished training are damaged."""
    job = begun(folder)
    damage = damaged_results(job, job.whole(Result), ("checkpoints/", "samples/"))
    assert damage
    again = to_restore(job, damage)
    train_worker(task, config, again, device=CPU, parallel=parallel, show=lambda _: None)


def test_only_the_workers_of_its_history_make_a_finished_training_again(tmp_path: Path) -> None:
    run(tmp_path, task=Ending(), parallel=OURS)
    before = contents(tmp_path)
    for key in ("weights", key_of(open_store(str(tmp_path)), 8)):
        flip_bit(tmp_path / key)
    harmed = contents(tmp_path)
    match = (
        r"made again by .*1 worker \(theirs\) from step 4, as the finished .* 1 worker \(ours\) from step 0"
    )
    with pytest.raises(UserError, match=match):
        restore(tmp_path, other(), THEIRS)
    left = {key for key, sha256 in harmed.items() if contents(tmp_path).get(key) != sha256}
    assert all("step-00000008" in key for key in left)  # the damaged one, and its marker
    restore(tmp_path, Ending(), OURS)
    assert contents(tmp_path) == before


def test_with_its_last_checkpoint_any_workers_do(tmp_path: Path) -> None:
    run(tmp_path, task=Ending(), parallel=OURS)
    before = contents(tmp_path)
    flip_bit(tmp_path / "weights")
    restore(tmp_path, other(), THEIRS)
    assert contents(tmp_path) == before


# Which checkpoints stay

EVERY_2 = CONFIG.model_copy(update={"steps": 16, "checkpoint_every": 2})


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (2, None, [14, 16]),
        (1, None, [16]),
        (1, 4, [4, 8, 12, 16]),
        (3, 6, [6, 12, 14, 16]),
        (99, None, [2, 4, 6, 8, 10, 12, 14, 16]),
    ],
)
def test_the_last_stay_and_every_nth(
    tmp_path: Path, keep_last: int, keep_every: int | None, kept: list[int]
) -> None:
    config = EVERY_2.model_copy(update={"keep_last": keep_last, "keep_every": keep_every})
    run(tmp_path, config, Ending())
    there = [int(path.name[5:13]) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert there == kept
    assert checkpoints_kept(config) == len(kept)
    is_whole(tmp_path)


def test_what_a_finished_training_keeps_does_not_change_when_it_is_made_again(tmp_path: Path) -> None:
    run(tmp_path, EVERY_2.model_copy(update={"keep_last": 1, "keep_every": 4}), Ending(), parallel=OURS)
    before = contents(tmp_path)
    for key in ("weights", key_of(open_store(str(tmp_path)), 16)):
        flip_bit(tmp_path / key)
    restore(tmp_path, Ending(), OURS, EVERY_2.model_copy(update={"keep_last": 3}))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_every": 3}, "keep_every 3 is not a multiple of checkpoint_every 4"),
        ({"keep_last": 0}, "greater than 0"),
        ({"num_workers": 3}, "batch_size 4 is not a multiple of num_workers 3: change one of them"),
        ({"num_workers": "5..9"}, "batch_size 4 is not a multiple of num_workers 5..9: change"),
        ({"num_workers": "4..2"}, "4..2 is no range"),
        ({"num_workers": "two"}, "'two' is neither a number, from 1 on, nor a range such as 2..8"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig.model_validate(CONFIG.model_dump() | settings)


def test_the_most_workers_that_can_share_the_batch_train() -> None:
    config = TrainingConfig(output="x", steps=1, batch_size=24, batches_per_step=2, num_workers="2..8")
    assert config.worker_range == (2, 8)
    assert [config.working(there) for there in range(1, 9)] == [1, 2, 3, 4, 4, 6, 6, 6]


# On notice


class Killed(Exception):
    """Stands for SIGKILL."""


@dataclass
class Leaving(Ending):
    """Dies in a step of its first start."""

    dies_in: int = 99

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        if self.dies_in * CONFIG.batch_size in positions:
            raise Killed
        return super().batch(positions)


@dataclass
class Notices:
    """Says from the ``nth`` question on that a node will be gone."""

    nth: int
    asked: list[bool] = field(default_factory=list)

    def __call__(self) -> bool:
        self.asked.append(len(self.asked) + 1 >= self.nth)
        return self.asked[-1]


def passing(store: Store) -> list[Checkpoint]:
    return passing_checkpoints(store)


@pytest.fixture
def left(tmp_path: Path) -> Store:
    """A run that was told in step 6 that its node goes, and died in step 8."""
    noticed = replace(OURS, notice=Notices(3))
    config = CONFIG.model_copy(update={"steps": 12})
    with pytest.raises(Killed):
        run(tmp_path / "left", config, Leaving(dies_in=7), parallel=noticed)
    return open_store(str(tmp_path / "left"))


TWELVE = CONFIG.model_copy(update={"steps": 12})


def test_on_notice_a_checkpoint_is_saved_that_a_resume_goes_on_from(tmp_path: Path, left: Store) -> None:
    run(tmp_path / "whole", TWELVE, Ending(), parallel=OURS)
    (found,) = passing(left)
    assert found.step == 6
    assert [problem.what[:10] for problem in verify(left)] == ["unfinished"]
    resumed = run(tmp_path / "left", TWELVE, Ending(), parallel=OURS)
    assert resumed.seen == list(range(6 * 4, 12 * 4))
    assert contents(tmp_path / "left") == contents(tmp_path / "whole")
    assert passing(left) == []
    is_whole(tmp_path / "left")


def test_it_goes_when_the_next_regular_one_is_there(tmp_path: Path, left: Store) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "left", TWELVE, Leaving(dies_in=9), parallel=OURS)
    assert passing(left) == []
    assert run(tmp_path / "left", TWELVE, Ending(), parallel=OURS).seen[0] == 8 * 4


def test_a_damaged_one_is_left_for_the_one_before(tmp_path: Path, left: Store) -> None:
    flip_bit(tmp_path / "left" / passing(left)[0].key())
    notes: list[str] = []
    assert run(tmp_path / "left", TWELVE, Ending(), parallel=OURS, told=notes).seen[0] == 4 * 4
    assert notes == ["the checkpoint of step 6 was damaged, so the training goes on from that of step 4"]
    is_whole(tmp_path / "left")


def test_other_workers_go_on_from_it_too(tmp_path: Path, left: Store) -> None:
    assert run(tmp_path / "left", TWELVE, other(), parallel=THEIRS).seen[0] == 6 * 4
    assert manifest_of(tmp_path / "left").history == segments((0, "ours"), (6, "theirs"))
    is_whole(tmp_path / "left")


def test_one_notice_is_one_checkpoint_and_none_where_a_regular_one_is_due(tmp_path: Path) -> None:
    @dataclass
    class Counted(Notices):
        """As ``Notices``; counts the checkpoints there are when it is asked."""

        there: Callable[[], int] = lambda: 0
        counts: list[int] = field(default_factory=list)

        def __call__(self) -> bool:
            self.counts.append(self.there())
            return super().__call__()

    config = CONFIG.model_copy(update={"log_every": 1})
    store = open_store(str(tmp_path))
    for nth, most in ((3, 1), (4, 0)):
        notice = Counted(nth, there=lambda: len(passing(store)))
        run(tmp_path, config, Ending(), parallel=replace(OURS, notice=notice))
        assert len(notice.asked) == CONFIG.steps
        assert max(notice.counts) <= most
        for info in list(store.list()):
            store.delete(info.key)


def test_the_state_of_a_passing_checkpoint_is_that_of_its_step(tmp_path: Path, left: Store) -> None:
    """Its bytes are those of a regular one at that step: the sum of losses is zero where it is made."""
    run(tmp_path / "regular", CONFIG.model_copy(update={"steps": 12, "checkpoint_every": 6}), parallel=OURS)
    regular = open_store(str(tmp_path / "regular"))
    assert left.get(passing(left)[0].key()) == regular.get(key_of(regular, 6))


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    store = at_half(tmp_path)
    tensors, facts = read_step(store, 4)
    bare = checkpoint_bytes(tensors, facts.model_copy(update={"history": ()}))
    begun(tmp_path).plain.drop(key_of(store, 4))
    store.put(checkpoint_key(4), bare)
    resumed = run(tmp_path, parallel=OURS)
    assert resumed.seen[0] == 4 * 4
    assert resumed.history == segments((4, "ours"))
    assert saved(store, 8).history == history_hash(resumed.history)
