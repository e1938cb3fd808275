"""Checkpoints by their keys: of any worker history, of earlier versions, and passing ones."""

from pathlib import Path

import pytest
import torch

from ray_dit.errors import Damaged
from ray_dit.folders.checkpoints import (
    Checkpoint,
    checkpoint_key,
    checkpoint_steps,
    checkpoints,
    leave_only,
    leave_only_result,
    parse_name,
    passing_checkpoints,
    read_checkpoint,
)
from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes
from ray_dit.formats.worker_history import history_hash, keyed, with_start
from ray_dit.ledger.job import Job
from ray_dit.storage.open import open_store

ONE = with_start((), 0, 1, ["a"])
BOTH = with_start(ONE, 4, 2, ["a", "a"])
OTHER = with_start(ONE, 6, 3, ["a"] * 3)


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint(100),
        Checkpoint(123456789, "12345678"),
        Checkpoint(7, "abcdef01", "0123456789abcdef"),
        Checkpoint(7, "", "0123456789abcdef"),
    ],
)
def test_names_are_read_back(checkpoint: Checkpoint) -> None:
    assert parse_name(checkpoint.name) == checkpoint


@pytest.mark.parametrize("name", ["", "7", "00000007-", "00000007-xyz", "00000007-1234567", "g01-00000007"])
def test_other_names_are_none(name: str) -> None:
    assert parse_name(name) is None


def test_those_of_each_kind_are_listed_apart(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    found = [Checkpoint(4), Checkpoint(4, "12345678"), Checkpoint(8, "abcdef01")]
    passing = Checkpoint(10, "abcdef01", "0123456789abcdef")
    for checkpoint in (*found, passing):
        store.put(checkpoint.key(), b"")
        store.put(checkpoint.key("g01-"), b"")
    for prefix in ("", "g01-"):
        assert checkpoints(store, prefix) == found
        assert checkpoint_steps(store, prefix) == [4, 8]
        assert passing_checkpoints(store, prefix) == [passing]


def test_the_history_until_its_step_decides_whose_a_checkpoint_is() -> None:
    assert checkpoint_key(4, "", BOTH) == checkpoint_key(4, "", ONE)
    assert checkpoint_key(5, "", BOTH) != checkpoint_key(5, "", ONE)
    assert Checkpoint(4, history_hash(ONE)).belongs(BOTH)
    assert not Checkpoint(5, history_hash(ONE)).belongs(BOTH)
    assert not Checkpoint(4).belongs(BOTH)
    later = with_start((), 4, 1, ["a"])  # went on from a checkpoint of an earlier version
    assert Checkpoint(4).belongs(later)
    assert not Checkpoint(5).belongs(later)


def test_a_passing_one_is_known_by_its_key(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    data = checkpoint_bytes({"log": torch.zeros(1)}, CheckpointFacts(step=6))
    wrong = Checkpoint(6, "", "0123456789abcdef")
    store.put(wrong.key(), data)
    with pytest.raises(Damaged, match="_runs/passing/step-00000006.* is damaged: it is not what was written"):
        read_checkpoint(store, wrong)


def test_what_another_history_left_goes_and_the_rest_is_listed(tmp_path: Path) -> None:
    job = Job.open(open_store(str(tmp_path)), "train", {"test": True})
    kept = {
        *(checkpoint_key(step, "", BOTH) for step in (2, 4, 6, 8)),
        keyed("samples/step-00000004.png", ONE),
        keyed("samples/step-00000008.png", BOTH),
        keyed("loss.json", BOTH),
        "loss-curve.json",
    }
    gone = {
        checkpoint_key(5, "", ONE),
        checkpoint_key(8, "", OTHER),
        checkpoint_key(8),
        keyed("samples/step-00000006.png", ONE),
        "samples/step-00000004.png",
        keyed("loss.json", ONE),
        "loss.json",
    }
    of_others = {"checkpoints/g01-step-00000008.safetensors", "g01-loss.json", "samples/other.png"}
    for key in kept | gone | of_others:
        job.store.put(key, b"")
    leave_only(job, BOTH)
    leave_only_result(job, "loss.json", BOTH)
    there = {info.key for info in job.store.list() if not info.key.startswith("_")}
    assert there == kept | of_others
    listed = {marker.key for marker in job.plain.markers()}
    assert {key for key in kept if "step-" in key} == listed
