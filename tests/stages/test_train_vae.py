"""train-vae and images that cannot be read: known before it begins, and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_dit.cli.commands import COMMANDS
from ray_dit.config import ImagesConfig, OptimizerConfig, TrainVaeConfig
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.images import plan_images
from ray_dit.folders.quarantine import quarantine_bytes, read_quarantine
from ray_dit.results import BadImage
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.worker import train_worker
from ray_dit.stages import train_vae as stage
from ray_dit.stages.train_vae import VAETask, judged_rows, train_vae
from tests.support.tiny import SIZE, VAE_SIZE, write_pictures

HELDOUT = 0.3


def settings(place: Path, output: str = "vae", **fields: Any) -> TrainVaeConfig:
    images = {"uri": str(place / "images"), "size": SIZE, "heldout": HELDOUT}
    images |= {"max_bad": fields.pop("max_bad", 0.01)}
    known = {
        "steps": 4,
        "batch_size": 8,
        "checkpoint_every": 2,
        "log_every": 2,
        "vae": VAE_SIZE,
        "num_cpus": 4,
    }
    known |= {"optimizer": OptimizerConfig(learning_rate=1e-3)}
    return TrainVaeConfig(output=str(place / output), images=ImagesConfig(**images), **known | fields)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", {"left": 10, "right": 10})
    return tmp_path


def spoil(place: Path, *, heldout: bool, count: int | None = None) -> list[str]:
    """Makes so many images unreadable; their keys. Sizes stay, and so does the plan."""
    plan = plan_images(settings(place).images)
    keys = [plan.keys[row] for row in plan.rows(heldout=heldout)[:count]]
    for key in keys:
        path = place / "images" / key
        path.write_bytes(b"x" * path.stat().st_size)
    return keys


def refused(place: Path, message: str, **fields: Any) -> None:
    """Before anything is trained, and so before Ray starts: the address is one nobody answers at."""
    with pytest.raises(UserError, match=message):
        train_vae(settings(place, address="127.0.0.1:1", **fields))
    assert not (place / "vae/checkpoints").exists()


def test_held_out_images_of_which_none_can_be_read_are_said_before_training(place: Path) -> None:
    keys = spoil(place, heldout=True)
    refused(place, f"none of the {len(keys)} images .* judged by can be read, first '{keys[0]}'", max_bad=0.9)


def test_more_unreadable_images_than_allowed_are_said_before_training(place: Path) -> None:
    (key,) = spoil(place, heldout=False, count=1)
    refused(place, f"1 of 20 images .*max_bad = 0.01 allows, the first is '{key}'")
    refused(place, "nothing answers at the Ray address", max_bad=0.05)
    assert key.encode() in (place / "vae/quarantine.parquet").read_bytes()


def test_a_worker_that_would_have_none_in_a_step_is_said_before_training(place: Path) -> None:
    spoil(place, heldout=False, count=7)
    fields = {"max_bad": 0.9, "batch_size": 2, "num_workers": 2, "steps": 40}
    refused(
        place,
        r"none of the 1 images .* that a worker has at once in step \d+ can be read, first .*batch-size",
        **fields,
    )
    refused(place, "nothing answers at the Ray address", max_bad=0.9, output="other")


def test_nothing_is_looked_at_that_is_not_needed(place: Path) -> None:
    config, plan = settings(place, steps=1, batch_size=2), plan_images(settings(place).images)
    needed = stage._needed(config, plan)  # pyright: ignore[reportPrivateUsage]
    train = plan.rows(heldout=False)
    assert len(np.intersect1d(needed, train)) == 2
    assert set(judged_rows(plan)) <= set(needed)
    assert len(stage._needed(settings(place), plan)) == 20  # pyright: ignore[reportPrivateUsage]


def test_what_was_set_aside_is_read_back() -> None:
    first = BadImage("left/1.png", "not a picture", "unreadable", 0, "left/1.png", 5, "ab" * 32)
    second = BadImage("right/ü 2.png", "cut off", label=1, format="PNG", mode="P", width=3, height=4)
    assert read_quarantine(quarantine_bytes([first, second], ("left", "right"))) == [first, second]


def test_some_unreadable_images_are_left_out_and_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = spoil(place, heldout=False, count=1) + spoil(place, heldout=True, count=1)
    config = settings(place, max_bad=0.1, address="127.0.0.1:1")
    refused(place, "nothing answers at the Ray address", max_bad=0.1)  # begun, as a run that was stopped
    plan = plan_images(config.images)
    job = stage.open_job(config, stage.STAGE, {"images": plan.sha256})
    bad = stage._set_aside(config, plan, job)  # pyright: ignore[reportPrivateUsage]
    task = VAETask(config, plan, config.optimizer, bad=bad)
    train_worker(task, config, job, device=torch.device("cpu"), parallel=Alone(), show=lambda _: None)
    COMMANDS["train-vae"].run(config)
    assert (
        "(2 images could not be read and were left out, listed in quarantine.parquet)"
        in capsys.readouterr().out
    )
    listed = [entry.key for entry in read_quarantine((place / "vae/quarantine.parquet").read_bytes())]
    assert sorted(listed) == sorted(keys)
    assert train_vae(config).facts.bad == 2


def test_what_is_set_aside_is_not_read_and_what_is_lost_stops_the_training_by_name(place: Path) -> None:
    """No step depends on when it was made."""
    config = settings(place, max_bad=0.1)
    plan = plan_images(config.images)
    lost = plan.keys[plan.rows(heldout=False)[0]]
    path = place / "images" / lost
    whole = path.read_bytes()
    path.unlink()
    job = stage.open_job(config, stage.STAGE, {"images": plan.sha256})
    bad = stage._set_aside(config, plan, job)  # pyright: ignore[reportPrivateUsage]
    assert [(entry.key, entry.code) for entry in bad] == [(lost, "gone")]
    with pytest.raises(
        UserError, match=f"1 of 20 images .* '{lost}' .its object is gone .*: bring those back"
    ):
        stage._set_aside(settings(place), plan, job)  # pyright: ignore[reportPrivateUsage]
    positions = np.arange(len(plan.rows(heldout=False)))
    task, knowing_nothing = (VAETask(config, plan, config.optimizer, bad=known) for known in (bad, ()))
    for one in (task, knowing_nothing):
        one.setup(torch.device("cpu"))
    images, _ = task.batch(task.fetch(positions))
    assert len(images) == len(positions) - 1
    path.write_bytes(whole)  # back, but the training has begun without it
    assert torch.equal(task.batch(task.fetch(positions))[0], images)
    assert len(knowing_nothing.batch(knowing_nothing.fetch(positions))[0]) == len(positions)
    path.write_bytes(whole + b"more")
    with pytest.raises(Conflict, match=f"{lost} is not what it was when its images were planned: bring that"):
        knowing_nothing.batch(knowing_nothing.fetch(positions))
    path.unlink()
    with pytest.raises(NotFound, match=f"{lost} is gone since its images were planned: bring it back"):
        knowing_nothing.batch(knowing_nothing.fetch(positions))
