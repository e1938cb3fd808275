"""A finished training whose results are damaged: one more run puts them back and trains no step again."""

from pathlib import Path

import pytest

from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.results import Result
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.restoring import damaged_results, to_restore
from ray_dit.runtime.training.worker import train_worker
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CONFIG, CPU, Ending, key_of
from tests.support.tiny import contents, flip_bit


def train(job: Job) -> Ending:
    task = Ending()
    train_worker(task, CONFIG, job, device=CPU, parallel=Alone(), show=lambda progress: None)
    return task


@pytest.fixture
def job(tmp_path: Path) -> Job:
    begun = Job.open(open_store(str(tmp_path)), "train", {"test": True})
    train(begun)
    assert list(verify(begun.store)) == []
    return begun


def test_what_is_damaged_or_missing_is_put_back(job: Job, tmp_path: Path) -> None:
    before = contents(tmp_path)
    flip_bit(tmp_path / "weights")
    (loss,) = tmp_path.glob("loss-*.json")
    loss.unlink()
    flip_bit(tmp_path / f"_plain/{loss.name}.json")
    damage = damaged_results(job, job.whole(Result), ("checkpoints/",))
    assert damage == [f"{tmp_path}/{key}" for key in ("weights", loss.name)]
    assert train(to_restore(job, damage)).seen == []
    assert contents(tmp_path) == before


def test_so_are_a_manifest_and_listings(job: Job, tmp_path: Path) -> None:
    before = contents(tmp_path)
    for key in ("manifest.json", "manifest/objects.jsonl", "manifest/plain.jsonl"):
        flip_bit(tmp_path / key)
        damage = damaged_results(job, job.whole(Result))
        assert damage == [str(tmp_path)]
        train(to_restore(job, damage))
        assert contents(tmp_path) == before


def test_a_damaged_last_checkpoint_is_trained_again(job: Job, tmp_path: Path) -> None:
    before = contents(tmp_path)
    flip_bit(tmp_path / key_of(job.store, 8))
    flip_bit(tmp_path / "weights")
    assert len(train(to_restore(job, ["weights"])).seen) == 4 * 4
    assert contents(tmp_path) == before


def test_without_checkpoints_nothing_is_trained_anew(job: Job, tmp_path: Path) -> None:
    for step in checkpoint_steps(job.store):
        job.store.delete(key_of(job.store, step))
    with pytest.raises(UserError, match="weights is missing or damaged, though .* no checkpoint is left"):
        to_restore(job, [f"{tmp_path}/weights"])


def test_an_unfinished_training_has_nothing_to_restore(tmp_path: Path) -> None:
    job = Job.open(open_store(str(tmp_path)), "train", {"test": True})
    assert damaged_results(job, job.whole(Result)) == []
