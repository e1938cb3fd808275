"""The loss curve in a run's folder, whichever version wrote it."""

import json
from pathlib import Path

import numpy as np
import pytest

from ray_dit.errors import NotFound
from ray_dit.folders.loss_curve import put_curve, read_loss_curve
from ray_dit.ledger.job import Job
from ray_dit.storage.open import open_store

LOG = np.array([[10, 1.0, 2.0, 1e-4, np.nan, 0.5], [20, 0.5, 1.0, 1e-4, 0.75, 0.25]])


def job_in(folder: Path, generation: int = 0) -> Job:
    job = Job.open(open_store(str(folder)), "train", {"made": "by a test"})
    return Job(job.store, job.stage, job.fingerprint, generation)


@pytest.mark.parametrize(("generation", "key"), [(0, "loss.jsonl"), (1, "g01-loss.jsonl")])
def test_each_point_is_a_line(tmp_path: Path, generation: int, key: str) -> None:
    job = job_in(tmp_path, generation)
    put_curve(job, LOG, ("0-999",))
    points = [json.loads(line) for line in (tmp_path / key).read_text().splitlines()]
    assert points == read_loss_curve(job.store, generation)
    assert points[0] == {
        "step": 10, "loss": 1.0, "gradient_norm": 2.0, "learning_rate": 1e-4, "loss_by_t": {"0-999": 0.5}
    }  # fmt: skip
    assert points[1]["validation_loss"] == 0.75


def test_a_folder_of_before_keeps_its_list(tmp_path: Path) -> None:
    """A finished run that is repaired must come to the bytes that its listing names."""
    job = job_in(tmp_path)
    earlier = b"[[10, 1.0], [20, 0.5]]\n"
    job.put_plain("loss.json", earlier, computed=True)
    (tmp_path / "loss.json").unlink()
    put_curve(job, LOG, ("0-999",))
    assert (tmp_path / "loss.json").read_bytes() == earlier
    assert not (tmp_path / "loss.jsonl").exists()
    assert read_loss_curve(job.store) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}]


def test_so_does_one_of_train_vae(tmp_path: Path) -> None:
    from ray_dit.stages.train_vae import npz_bytes

    job = job_in(tmp_path)
    earlier = npz_bytes(log=np.ascontiguousarray(LOG[:, :2]))
    job.put_plain("log.npz", earlier, computed=True)
    put_curve(job, LOG)
    assert (tmp_path / "log.npz").read_bytes() == earlier
    assert not (tmp_path / "loss.jsonl").exists()
    assert read_loss_curve(job.store) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}]


def test_a_folder_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_loss_curve(job_in(tmp_path).store)
