"""train on a real Ray with workers that change; models of checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ray_dit
from ray_dit.checkpoints.averaged import export_model
from ray_dit.config import ExportModelConfig
from ray_dit.errors import Conflict, UserError
from ray_dit.folders.model import read_model
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import read_manifest
from ray_dit.ledger.results import Manifest
from ray_dit.results import RESULTS, ModelResult, TrainingResult
from ray_dit.stages.train import train
from ray_dit.storage.open import open_store
from tests.stages.test_train import STEPS, losses, make_place, marker_of, one, settings, state_of
from tests.support.tiny import contents, flip_bit, times, write_model

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


# Models of checkpoints


def objects_of(model: Path) -> dict[str, str]:
    """A model folder's objects without those of the protocol."""
    return {key: sha256 for key, sha256 in contents(model).items() if not key.startswith(("_", "manifest"))}


def test_the_last_checkpoint_exported_is_the_model_of_the_training(
    place: Path, trained: Manifest[TrainingResult]
) -> None:
    for step in ("last", str(STEPS)):
        asked = ExportModelConfig(checkpoint=f"{place}/run@{step}", output=str(place / f"exported-{step}"))
        assert export_model(asked) == (str(place / f"exported-{step}"), STEPS)
        assert objects_of(place / f"exported-{step}") == objects_of(place / "run/model")
    manifest = read_manifest(str(place / "exported-last"), ModelResult)
    assert manifest.parts["train"] == trained.fingerprint
    assert manifest.parts["step"] == manifest.facts.steps == STEPS
    assert manifest.facts.history == trained.facts.history
    before = times(place / "exported-last")
    export_model(ExportModelConfig(checkpoint=f"{place}/run@last", output=str(place / "exported-last")))
    assert times(place / "exported-last") == before
    assert list(verify(open_store(str(place / "exported-last")), results=RESULTS)) == []


def test_an_earlier_checkpoint_is_exported_too_also_of_an_unfinished_run(
    place: Path, trained: Manifest[TrainingResult]
) -> None:
    run = place / "half-way"
    shutil.copytree(place / "run", run)
    unfinished(run)
    shutil.rmtree(run / "model")
    folder, step = export_model(ExportModelConfig(checkpoint=f"{run}@6"))
    assert (folder, step) == (f"{run}/model-step-00000006", 6)
    weights = read_model(folder).state_dict()
    state = state_of(one(run / "checkpoints", "step-00000006.safetensors"))
    assert all(torch.equal(weights[name[4:]], value) for name, value in state.items() if name[:4] == "ema.")
    assert "Trained for 6 steps" in Path(folder, "README.md").read_text()
    assert len(ray_dit.load(folder)(labels=["left"], steps=2)) == 1
    with pytest.raises(Conflict, match="step: 6 -> 12"):
        export_model(ExportModelConfig(checkpoint=f"{run}@12", output=folder))


def test_what_can_not_be_exported_is_said(place: Path, trained: Manifest[TrainingResult]) -> None:
    def refused(run: str, **fields: Any) -> str:
        with pytest.raises(UserError) as error:
            export_model(ExportModelConfig(checkpoint=run, **fields))
        return str(error.value)

    assert "has no checkpoint of step 7: there are those of steps 6, 12" in refused(f"{place}/run@7")
    assert "holds latents, not a training run" in refused(f"{place}/latents-images@last")
    assert "holds no job of ray-dit" in refused(f"{place}/images@last")
    others = refused(f"{place}/run@last", latents=str(place / "latents-unlabelled"))
    assert "latents-unlabelled is not what" in others
    shutil.copytree(place / "run", place / "no-record")
    shutil.rmtree(place / "no-record/_runs")
    assert "does not tell where its latents is" in refused(f"{place}/no-record@last")
    asked = ExportModelConfig(
        checkpoint=f"{place}/no-record@last",
        latents=str(place / "latents-images"),
        output=str(place / "told"),
    )
    export_model(asked)
    assert objects_of(place / "told") == objects_of(place / "run/model")
    flip_bit(one(place / "no-record/checkpoints", "step-00000012.safetensors"))
    assert "is damaged" in refused(f"{place}/no-record@12", latents=str(place / "latents-images"))
    for bad in ("run", "run@", "run@x", "@3", "run@3x"):
        with pytest.raises(ValueError, match="names no checkpoint: give RUN@STEP, or RUN@last"):
            ExportModelConfig(checkpoint=bad)


def test_the_export_of_a_run_that_started_from_a_model(place: Path) -> None:
    write_model(place / "root", ("one", "two"), licence="MIT")
    fields = {"steps": 2, "checkpoint_every": 1, "grid_per_class": 0, "init_from": str(place / "root")}
    train(settings(place, "grafted", **fields, keep_every=1, keep_last=1, extend=False))
    export_model(ExportModelConfig(checkpoint=f"{place}/grafted@2", output=str(place / "grafted-2")))
    assert objects_of(place / "grafted-2") == objects_of(place / "grafted/model")
    export_model(ExportModelConfig(checkpoint=f"{place}/grafted@1"))  # which --keep-every has kept


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
