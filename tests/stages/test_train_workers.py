"""train on a real Ray with other workers than before, and with a range of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_dit.folders.model import read_model
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import read_manifest
from ray_dit.ledger.results import Manifest
from ray_dit.results import RESULTS, ModelResult, TrainingResult
from ray_dit.stages.train import train
from ray_dit.storage.open import open_store
from tests.stages.test_train import losses, make_place, marker_of, one, settings, state_of
from tests.support.tiny import contents, flip_bit, times

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, one_ray: Any) -> Path:
    return make_place(tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def trained(place: Path) -> Manifest[TrainingResult]:
    return train(settings(place, "run"))


# Other workers


def unfinished(run: Path) -> None:
    """As where the driver was killed when all but the run's manifest was there."""
    (run / "manifest.json").unlink()
    shutil.rmtree(run / "manifest")


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_the_newest_checkpoint_of_two_workers_lost_and_on_with_one(
    place: Path, trained: Manifest[TrainingResult], harm: str
) -> None:
    run = place / f"on-with-one-{harm}"
    train(settings(place, run.name, num_workers=2))
    two = read_model(str(run / "model")).state_dict()
    unfinished(run)
    newest = one(run / "checkpoints", "step-00000012.safetensors")
    if harm == "damaged":
        flip_bit(newest)
    else:
        marker_of(run, newest).unlink()
        newest.unlink()
    facts = train(settings(place, run.name, num_workers=1)).facts
    assert [(each.first, each.workers) for each in facts.history] == [(0, 2), (6, 1)]
    assert list(verify(open_store(str(run)), results=RESULTS)) == []
    assert read_manifest(str(run / "model"), ModelResult).facts.history == facts.history
    last = state_of(one(run / "checkpoints", "step-00000012.safetensors"))
    weights = read_model(str(run / "model")).state_dict()
    assert all(torch.equal(weights[name[4:]], value) for name, value in last.items() if name[:4] == "ema.")
    assert any(not torch.equal(weights[name], two[name]) for name in two), "the model of the lost steps"
    assert [path.name[:13] for path in sorted((run / "samples").iterdir())] == [
        "step-00000006",
        "step-00000012",
    ]
    np.testing.assert_allclose(losses(place, run.name), losses(place, "run"), rtol=1e-5)
    before = times(run)
    assert train(settings(place, run.name, num_workers=2)).facts == facts
    assert times(run) == before


def test_a_model_of_lost_steps_beside_a_finished_run_is_made_again(
    place: Path, trained: Manifest[TrainingResult]
) -> None:
    """Where two runs of other workers ended at the same moment, the run's manifest decides."""
    run = place / "beside"
    shutil.copytree(place / "run", run)
    shutil.rmtree(run / "model")
    train(settings(place, "pair", num_workers=2))
    shutil.copytree(place / "pair/model", run / "model")
    job = json.loads((place / "run/model/_job.json").read_bytes())
    assert json.loads((run / "model/_job.json").read_bytes()) == job, "both have one fingerprint"
    before = contents(place / "run")
    assert train(settings(place, "beside")) == trained
    assert contents(run) == before


# A range of workers


def test_of_a_range_the_most_that_share_the_batch_train_and_the_others_wait(
    place: Path, trained: Manifest[TrainingResult]
) -> None:
    """Ray has room for three, of which two can share a batch of four."""
    facts = train(settings(place, "range", num_workers="2..3")).facts
    assert [(each.first, each.workers) for each in facts.history] == [(0, 2)]
    np.testing.assert_allclose(losses(place, "range"), losses(place, "run"), rtol=1e-5)
    assert list(verify(open_store(str(place / "range")), results=RESULTS)) == []


def test_of_a_range_one_may_be_all_that_trains(place: Path, trained: Manifest[TrainingResult]) -> None:
    """A batch of seven is shared by one or by seven; three are there."""
    facts = train(settings(place, "seven", num_workers="3..7", batch_size=7, steps=4)).facts
    assert [(each.first, each.workers) for each in facts.history] == [(0, 1)]
