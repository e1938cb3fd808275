"""train with workers that change, and models of its checkpoints.

Without Ray: another kind of machine stands for other workers.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ray_dit
from ray_dit.checkpoints.averaged import export_model
from ray_dit.config import DiTSizeConfig, ExportModelConfig, TrainConfig
from ray_dit.errors import Conflict, UserError
from ray_dit.folders.checkpoints import checkpoints
from ray_dit.folders.model import read_model
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import read_manifest
from ray_dit.results import RESULTS, LatentsResult, ModelResult, OfHistory, TrainingResult
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.worker import train_worker
from ray_dit.stages.fingerprint import open_job
from ray_dit.stages.train import DiTTask, model_config_of
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE
from tests.runtime.training.regression import key_of, read_step
from tests.support.latents_task import train_config, write_latents
from tests.support.results import latents_result
from tests.support.tiny import SAMPLER, VAE_SIZE, contents, flip_bit, times, write_model

STEPS = 12
ONE = Alone(kind=lambda: "one")
OTHER = Alone(kind=lambda: "other")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("changing")
    store = open_store(write_latents(folder / "latents"))
    for key, data in VAE.create(VAE_SIZE, seed=3).files().items():
        store.put(f"vae/{key}", data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DIT_CACHE", str(folder / "cache"))
        yield folder


def settings(place: Path, output: str, **fields: Any) -> TrainConfig:
    known = {"steps": STEPS, "checkpoint_every": 6, "log_every": 3, "validate_every": 6, "grid_per_class": 1}
    known |= {"sampler": SAMPLER} | fields
    return train_config(str(place / "latents"), **known).model_copy(update={"output": str(place / output)})


def train_here(config: TrainConfig, parallel: Alone = ONE) -> None:
    """What `train` does, in this process."""
    latents = read_manifest(config.latents, LatentsResult)
    source = read_model(config.init_from) if config.init_from else None
    model = model_config_of(config, latents.facts, source)
    size = model.model.model_dump(mode="json", include=set(DiTSizeConfig.model_fields))
    inputs = {"latents": latents.sha256}
    if config.init_from:
        inputs["init_from"] = read_manifest(config.init_from, ModelResult).sha256
    job = open_job(config, "train", inputs, resolved={"model": size, "diffusion": model.diffusion})
    job.run({"what": "train", "latents": config.latents, "init_from": config.init_from})
    folder = config.model_output or f"{config.output}/model"
    model_job = Job.open(open_store(folder), ModelResult.stage_name, {"train": job.fingerprint})
    task = DiTTask(config, model, latents, model_job, config.optimizer, config.ema_decay)
    train_worker(task, config, job, device=torch.device("cpu"), parallel=parallel, show=lambda _: None)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    train_here(settings(place, "run"))
    return place / "run"


def objects_of(model: Path) -> dict[str, str]:
    """A model folder's objects without those of the protocol."""
    return {key: sha256 for key, sha256 in contents(model).items() if not key.startswith(("_", "manifest"))}


def unfinished(run: Path) -> None:
    """As where the driver was killed when all but the run's manifest was there."""
    (run / "manifest.json").unlink()
    shutil.rmtree(run / "manifest")


def averaged(run: Path, step: int) -> dict[str, torch.Tensor]:
    tensors, _ = read_step(open_store(str(run)), step)
    return {name[4:]: value for name, value in tensors.items() if name.startswith("ema.")}


def test_a_run_others_went_on_with_is_whole(place: Path, whole: Path) -> None:
    run = place / "lost"
    shutil.copytree(whole, run)
    unfinished(run)
    before = objects_of(run / "model")
    flip_bit(run / key_of(open_store(str(run)), STEPS))
    train_here(settings(place, "lost"), OTHER)
    history = read_manifest(str(run), TrainingResult).facts.history
    assert [(each.first, each.kind) for each in history] == [(0, "one"), (6, "other")]
    assert read_manifest(str(run / "model"), ModelResult).facts.history == history
    assert list(verify(open_store(str(run)), results=RESULTS)) == []
    assert [found.step for found in checkpoints(open_store(str(run)))] == [6, 12]
    assert len(list((run / "samples").iterdir())) == 2
    assert objects_of(run / "model") == before, "these machines differ in name alone"
    weights = read_model(str(run / "model")).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in averaged(run, STEPS).items())


def test_a_model_that_a_lost_run_has_written_is_replaced(place: Path, whole: Path) -> None:
    """Of other bits: there as if its steps had been trained by others."""
    run = place / "replaced"
    shutil.copytree(whole, run)
    unfinished(run)
    shutil.rmtree(run / "model")
    flip_bit(run / key_of(open_store(str(run)), STEPS))
    fingerprint = read_manifest(str(whole), TrainingResult).fingerprint
    job = Job.open(open_store(str(run / "model")), ModelResult.stage_name, {"train": fingerprint})
    mark = key_of(open_store(str(whole)), STEPS)[-20:-12]
    lost = replace(job, way=mark)
    facts = read_manifest(str(whole / "model"), ModelResult).facts
    for path in ("model.safetensors", "README.md", "config.json"):
        data = (whole / "model" / path).read_bytes()
        lost.put(path, path, data[:-1] + b"!", OfHistory(history=mark))
    lost.finish(facts)
    train_here(settings(place, "replaced"), OTHER)
    assert objects_of(run / "model") == objects_of(whole / "model")
    assert list(verify(open_store(str(run)), results=RESULTS)) == []


def test_the_last_checkpoint_exported_is_the_model_of_the_training(place: Path, whole: Path) -> None:
    training = read_manifest(str(whole), TrainingResult)
    for step in ("last", str(STEPS)):
        output = place / f"exported-{step}"
        asked = ExportModelConfig(checkpoint=f"{whole}@{step}", output=str(output))
        assert export_model(asked) == (str(output), STEPS)
        assert objects_of(output) == objects_of(whole / "model")
    manifest = read_manifest(str(place / "exported-last"), ModelResult)
    assert manifest.parts["train"] == training.fingerprint
    assert manifest.parts["step"] == manifest.facts.steps == STEPS
    assert manifest.facts.history == training.facts.history
    before = times(place / "exported-last")
    export_model(ExportModelConfig(checkpoint=f"{whole}@last", output=str(place / "exported-last")))
    assert times(place / "exported-last") == before
    assert list(verify(open_store(str(place / "exported-last")), results=RESULTS)) == []


def test_an_earlier_checkpoint_is_exported_too_also_of_an_unfinished_run(place: Path, whole: Path) -> None:
    run = place / "half-way"
    shutil.copytree(whole, run)
    unfinished(run)
    shutil.rmtree(run / "model")
    folder, step = export_model(ExportModelConfig(checkpoint=f"{run}@6"))
    assert (folder, step) == (f"{run}/model-step-00000006", 6)
    weights = read_model(folder).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in averaged(run, 6).items())
    assert "Trained for 6 steps" in Path(folder, "README.md").read_text()
    assert len(ray_dit.load(folder)(labels=["a"], steps=2)) == 1
    with pytest.raises(Conflict, match="step: 6 -> 12"):
        export_model(ExportModelConfig(checkpoint=f"{run}@12", output=folder))


def test_what_can_not_be_exported_is_said(place: Path, whole: Path) -> None:
    def refused(run: str, **fields: Any) -> str:
        with pytest.raises(UserError) as error:
            export_model(ExportModelConfig(checkpoint=run, **fields))
        return str(error.value)

    assert "has no checkpoint of step 7: there are those of steps 6, 12" in refused(f"{whole}@7")
    assert "holds latents, not a training run" in refused(f"{place}/latents@last")
    assert "holds no job of ray-dit" in refused(f"{place}/nothing@last")
    others = Job.open(open_store(str(place / "others")), "encode", {"made": "otherwise"})
    others.finish(latents_result(classes=("a",), rows=1, train_rows=1, latent_shape=(4, 8, 8)))
    assert "others is not what" in refused(f"{whole}@last", latents=str(place / "others"))
    shutil.copytree(whole, place / "no-record")
    shutil.rmtree(place / "no-record/_runs")
    assert "does not tell where its latents is" in refused(f"{place}/no-record@last")
    told = {"latents": str(place / "latents"), "output": str(place / "told")}
    export_model(ExportModelConfig(checkpoint=f"{place}/no-record@last", **told))
    assert objects_of(place / "told") == objects_of(whole / "model")
    flip_bit(place / "no-record" / key_of(open_store(str(place / "no-record")), STEPS))
    assert "is damaged" in refused(f"{place}/no-record@12", latents=str(place / "latents"))
    for bad in ("run", "run@", "run@x", "@3", "run@3x"):
        with pytest.raises(ValueError, match="names no checkpoint: give RUN@STEP, or RUN@last"):
            ExportModelConfig(checkpoint=bad)


def test_the_export_of_a_run_that_started_from_a_model(place: Path) -> None:
    write_model(place / "root", ("x", "y"), licence="MIT")
    fields = {"steps": 2, "checkpoint_every": 1, "log_every": 1, "validate_every": 0, "grid_per_class": 0}
    fields |= {"init_from": str(place / "root"), "keep_every": 1, "keep_last": 1, "model": DiTSizeConfig()}
    train_here(settings(place, "grafted", **fields))
    export_model(ExportModelConfig(checkpoint=f"{place}/grafted@2", output=str(place / "grafted-2")))
    assert objects_of(place / "grafted-2") == objects_of(place / "grafted/model")
    export_model(ExportModelConfig(checkpoint=f"{place}/grafted@1"))  # which --keep-every has kept
