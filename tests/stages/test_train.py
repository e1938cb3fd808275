"""train on a real Ray: the number of workers changes no sample; the model folder loads and makes pictures."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ray_dit
from ray_dit.config import (
    DiffusionConfig,
    DiTSizeConfig,
    EncodeConfig,
    ImagesConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
)
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import DiT
from ray_dit.errors import Conflict, UserError
from ray_dit.folders.loss_curve import read_loss_curve
from ray_dit.folders.model import read_model
from ray_dit.formats.checkpoint import parse_checkpoint
from ray_dit.formats.worker_history import history_hash
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import read_manifest
from ray_dit.ledger.results import Manifest
from ray_dit.results import RESULTS, LatentsResult, ModelResult, TrainingResult
from ray_dit.stages.encode import encode
from ray_dit.stages.train import DiTTask, model_config_of, train
from ray_dit.storage.open import open_store
from tests.support.tiny import (
    MODEL,
    SAMPLER,
    SIZE,
    contents,
    flip_bit,
    kinds_of_machines,
    times,
    write_model,
    write_pictures,
    write_vae,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

STEPS = 12


def make_place(folder: Path) -> Path:
    """A folder with latents to train on."""
    write_vae(folder / "vae")
    write_pictures(folder / "images", {"left": 10, "middle": 10, "right": 10})
    write_pictures(folder / "unlabelled", {"all": 12})
    for images in ("images", "unlabelled"):
        pictures = ImagesConfig(uri=str(folder / images), size=SIZE, heldout=0.1)
        output = str(folder / f"latents-{images}")
        encode(EncodeConfig(images=pictures, vae=str(folder / "vae"), output=output, actors=1, shard_size=16))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, one_ray: Any) -> Path:
    return make_place(tmp_path_factory.mktemp("train"))


def settings(place: Path, output: str, **fields: Any) -> TrainConfig:
    known = {"steps": STEPS, "batch_size": 4, "log_every": 1, "checkpoint_every": 6, "grid_per_class": 2}
    known |= {"model": MODEL, "sampler": SAMPLER, "latents": str(place / "latents-images")}
    optimizer = OptimizerConfig(learning_rate=fields.pop("learning_rate", 1e-3))
    return TrainConfig(output=str(place / output), optimizer=optimizer, **(known | fields))


def one(folder: Path, name: str) -> Path:
    """The file of this name; the hash of the worker history, ahead of the suffix, is left out of it."""
    stem, suffix = name.rsplit(".", 1)
    (found,) = folder.glob(f"{stem}-????????.{suffix}")
    return found


def marker_of(folder: Path, path: Path) -> Path:
    """The marker of an object without facts."""
    number = "-g01" if path.name.startswith("g01-") else ""
    return folder / f"_plain{number}" / f"{path.relative_to(folder)}.json"


def curve_of(run: Path) -> list[dict[str, Any]]:
    """The loss curve of the newest generation."""
    manifest = read_manifest(str(run), TrainingResult)
    return read_loss_curve(open_store(str(run)), manifest.generation, manifest.facts.history)


def losses(place: Path, output: str) -> np.ndarray:
    points = curve_of(place / output)
    assert [point["step"] for point in points] == list(range(1, len(points) + 1))
    return np.array([point["loss"] for point in points])


@pytest.fixture(scope="module")
def trained(place: Path) -> Manifest[TrainingResult]:
    return train(settings(place, "run"))


def test_two_workers_see_the_samples_of_one(place: Path, trained: Manifest[TrainingResult]) -> None:
    train(settings(place, "pair", num_workers=2))
    alone, pair = losses(place, "run"), losses(place, "pair")
    np.testing.assert_allclose(pair, alone, atol=1e-5, rtol=0)
    assert np.ptp(alone) > 1e-2  # steps differ by far more than that, so other samples would show


def test_the_run_and_its_model_folder(place: Path, trained: Manifest[TrainingResult]) -> None:
    from PIL import Image

    assert (trained.facts.steps, trained.facts.samples) == (STEPS, STEPS * 4)
    assert trained.facts.loss == losses(place, "run")[-1]
    pictures = sorted((place / "run/samples").iterdir())
    mark = history_hash(trained.facts.history)
    assert [path.name for path in pictures] == [f"step-{step:08d}-{mark}.png" for step in (6, 12)]
    with Image.open(pictures[-1]) as image:
        assert image.width > 2 * SIZE
        assert image.height > 3 * SIZE
    pipe = ray_dit.load(str(place / "run/model"))
    assert pipe.labels.names == ("left", "middle", "right")
    images = pipe(labels=[2, "left"], steps=3, guidance_scale=2.0, seed=0)
    assert [image.size for image in images] == [(SIZE, SIZE)] * 2
    again = pipe(labels=["right", 0], steps=3, guidance_scale=2.0, seed=0)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in again]


def test_running_it_again_writes_nothing(place: Path, trained: Manifest[TrainingResult]) -> None:
    before = times(place / "run")
    assert train(settings(place, "run")) == trained
    assert times(place / "run") == before


# Extensions


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """Weights, average and optimizer of a checkpoint; the loss curve is compared as loss.jsonl."""
    tensors, _ = parse_checkpoint(path.read_bytes())
    return {name: value for name, value in tensors.items() if name != "log"}


@pytest.fixture(scope="module")
def grown(place: Path, trained: Manifest[TrainingResult]) -> Path:
    shutil.copytree(place / "run", place / "grown")
    before = contents(place / "grown")
    manifest = train(settings(place, "grown", steps=20, extend=True))
    assert (manifest.facts.steps, manifest.facts.samples) == (20, 80)
    assert before.items() <= contents(place / "grown").items()
    return place / "grown"


def test_an_extension_has_the_bits_of_a_run_asked_for_all_steps(place: Path, grown: Path) -> None:
    train(settings(place, "whole", steps=20))
    for step in (18, 20):
        ours, theirs = f"g01-step-{step:08d}", f"step-{step:08d}"
        for folder, suffix in (("checkpoints", "safetensors"), ("samples", "png")):
            extended = one(grown / folder, f"{ours}.{suffix}").read_bytes()
            assert extended == one(place / "whole" / folder, f"{theirs}.{suffix}").read_bytes()
    assert one(grown, "g01-loss.jsonl").read_bytes() == one(place / "whole", "loss.jsonl").read_bytes()
    ours, theirs = contents(grown / "model-g01"), contents(place / "whole/model")
    assert {key for key in ours if ours[key] != theirs[key]} <= {"_job.json", "manifest.json"}
    assert list(verify(open_store(str(grown)), results=RESULTS)) == []


def test_the_commands_of_both_generations_write_nothing_more(place: Path, grown: Path) -> None:
    before = times(grown)
    assert train(settings(place, "grown")).facts.steps == STEPS
    for extend in (False, True):
        assert train(settings(place, "grown", steps=20, extend=extend)).facts.steps == 20
    assert times(grown) == before
    assert read_manifest(str(grown), TrainingResult).facts.steps == 20
    assert read_manifest(str(grown / "model"), ModelResult).facts.steps == STEPS


def test_each_generation_makes_its_own_damaged_results_again(
    place: Path, grown: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(grown)
    loss, later = (one(grown, name) for name in ("loss.jsonl", "g01-loss.jsonl"))
    for path in (loss, later, grown / "model/model.safetensors", grown / "model-g01/model.safetensors"):
        flip_bit(path)
    train(settings(place, "grown", steps=20))
    assert f"{loss.name} is missing or damaged; train with 12 steps makes it again" in caplog.text
    assert contents(grown)[later.name] == before[later.name]
    train(settings(place, "grown"))
    assert contents(grown) == before


@pytest.mark.parametrize("extend", [False, True])
def test_a_killed_extension_goes_on_to_the_same_bytes(place: Path, grown: Path, extend: bool) -> None:
    folder = place / f"killed-{extend}"
    shutil.copytree(grown, folder)
    shutil.rmtree(folder / "model-g01")
    for path in [folder / "manifest-g01.json", *folder.glob("manifest/*g01*")]:
        path.unlink()
    newest = one(folder / "checkpoints", "g01-step-00000020.safetensors")
    for path in (one(folder, "g01-loss.jsonl"), newest):
        marker_of(folder, path).unlink()
        path.unlink()
    with pytest.raises(UserError, match="is being extended to 20 steps: finish that first"):
        train(settings(place, folder.name, steps=24, extend=True))
    train(settings(place, folder.name, steps=20, extend=extend))
    assert contents(folder) == contents(grown)


def test_an_end_between_two_points_of_the_curve_stays_a_point(place: Path) -> None:
    odd = {"log_every": 3, "checkpoint_every": 6}
    train(settings(place, "odd", steps=7, **odd))
    lost = place / "odd-lost"  # goes on from step 6, since the end is gone
    shutil.copytree(place / "odd", lost)
    end = one(lost / "checkpoints", "step-00000007.safetensors")
    end.unlink()
    for folder in ("odd", "odd-lost"):
        train(settings(place, folder, steps=14, extend=True, **odd))
    train(settings(place, "odd-whole", steps=14, **odd))
    ours = state_of(one(place / "odd/checkpoints", "g01-step-00000014.safetensors"))
    theirs = state_of(one(place / "odd-whole/checkpoints", "step-00000014.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    points = curve_of(place / "odd")
    assert [point["step"] for point in points] == [3, 6, 7, 9, 12, 14]
    assert [point["step"] for point in points if "validation_loss" in point] == [6, 7, 12, 14]
    lost_now, kept = contents(lost), contents(place / "odd")
    assert {key for key in kept if lost_now.get(key) != kept[key]} == {str(end.relative_to(lost))}


def test_more_steps_name_the_ways_there_are(place: Path, trained: Manifest[TrainingResult]) -> None:
    with pytest.raises(Conflict, match="config.steps: 12 -> 20.*or add --extend to keep what is there"):
        train(settings(place, "run", steps=20))
    with pytest.raises(UserError, match="has 12 steps already: ask for more to extend it"):
        train(settings(place, "run", steps=6, extend=True))
    with pytest.raises(Conflict, match=r"can't be extended with other settings .*config.seed: 0 -> 1"):
        train(settings(place, "run", steps=20, seed=1, extend=True))
    shutil.copytree(place / "run", place / "taken")
    with pytest.raises(UserError, match=r"taken/model holds another model.* or none for .*taken/model-g01"):
        train(settings(place, "taken", steps=20, extend=True, model_output=str(place / "taken/model")))
    cosine = OptimizerConfig(learning_rate=1e-3, schedule="cosine")
    train(settings(place, "cosine", steps=2).model_copy(update={"optimizer": cosine}))
    longer = settings(place, "cosine", steps=4).model_copy(update={"optimizer": cosine})
    with pytest.raises(Conflict, match="config.steps: 2 -> 4") as refused:
        train(longer)
    assert "--extend" not in str(refused.value)
    before = times(place / "cosine")
    with pytest.raises(UserError, match=r"cosine schedule .* ends at step 2.*constant.*--init-from"):
        train(longer.model_copy(update={"extend": True}))
    assert times(place / "cosine") == before


def test_damaged_results_are_made_again_from_the_last_checkpoint(
    place: Path, trained: Manifest[TrainingResult], caplog: pytest.LogCaptureFixture
) -> None:
    run = place / "run"
    assert kinds_of_machines(run) == kinds_of_machines(run / "model") == 1
    before = contents(run)
    loss = one(run, "loss.jsonl")
    for path in (run / "model/model.safetensors", loss, marker_of(run, loss), run / "model/manifest.json"):
        flip_bit(path)
    (run / "model/README.md").unlink()
    assert train(settings(place, "run")) == trained
    assert "it is made again" in caplog.text
    assert train(settings(place, "run")) == trained  # what a damaged manifest hid
    assert contents(run) == before


def test_without_a_checkpoint_a_finished_training_is_not_begun_anew(
    place: Path, trained: Manifest[TrainingResult]
) -> None:
    shutil.copytree(place / "run", place / "bare")
    shutil.rmtree(place / "bare/checkpoints")
    assert train(settings(place, "bare")) == trained
    flip_bit(place / "bare/model/model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is missing or damaged, .*no checkpoint is left"):
        train(settings(place, "bare"))


def test_a_training_keeps_to_the_latents_it_has_begun_with(place: Path) -> None:
    shutil.copytree(place / "images", place / "growing")
    grown = ImagesConfig(uri=str(place / "growing"), size=SIZE, heldout=0.1)
    config = EncodeConfig(
        images=grown,
        vae=str(place / "vae"),
        output=str(place / "growing-latents"),
        actors=1,
        shard_size=16,
    )
    known = {"latents": config.output, "steps": 4, "checkpoint_every": 2, "grid_per_class": 1}
    base = encode(config)
    finished = train(settings(place, "before", **known))
    train(settings(place, "undisturbed", **known))
    shutil.copytree(place / "undisturbed", place / "killed")
    write_pictures(place / "others", {"aaa": 8})
    shutil.copytree(place / "others", place / "growing", dirs_exist_ok=True)
    extended = encode(config.model_copy(update={"extend": True}))
    assert extended.facts.classes == ("left", "middle", "right", "aaa")
    assert train(settings(place, "before", **known)) == finished
    run = place / "killed"
    for path in (one(run, "loss.jsonl"), one(run / "checkpoints", "step-00000004.safetensors")):
        marker_of(run, path).unlink()
        path.unlink()
    (run / "manifest.json").unlink()
    for folder in ("manifest", "model"):
        shutil.rmtree(run / folder)
    train(settings(place, "killed", **known))
    assert contents(run) == contents(place / "undisturbed")
    assert read_model(f"{run}/model").labels.names == base.facts.classes
    later = train(settings(place, "after", **known))
    assert later.parts["inputs"]["latents"] == extended.sha256 != base.sha256
    assert read_model(str(place / "after/model")).labels.names == extended.facts.classes
    config_before, config_after = (
        read_model(f"{place / name}/model").config.latents for name in ("before", "after")
    )
    assert config_before.shift == base.facts.mean
    assert config_after.shift == extended.facts.mean


def test_latents_with_another_vae_are_refused(place: Path) -> None:
    shutil.copytree(place / "latents-images", place / "changed")
    flip_bit(place / "changed/vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="changed/vae does not hold what was written there"):
        train(settings(place, "on-changed", latents=str(place / "changed")))
    assert not (place / "on-changed/checkpoints").exists()


def test_it_starts_from_another_model_with_other_classes(place: Path) -> None:
    source = write_model(place / "source", ("one", "two")).state_dict()
    fields = {"steps": 2, "checkpoint_every": 2, "learning_rate": 1e-12}
    train(settings(place, "tuned", init_from=str(place / "source"), **fields))
    tuned = ray_dit.load(str(place / "tuned/model")).model.state_dict()
    table = "y_embedder.embedding_table.weight"
    assert tuned[table].shape[0] == 4
    assert source[table].shape[0] == 3
    assert tuned.keys() == source.keys()
    assert all(torch.allclose(tuned[name], source[name], atol=1e-6) for name in source if name != table)


def test_it_keeps_what_the_weights_it_starts_from_were_made_for(place: Path) -> None:
    kept = {"guidance_channels": 2, "licence": "MIT", "diffusion": DiffusionConfig(num_train_timesteps=500)}
    normalisation = LatentsConfig(shift=0.5, scale=0.3, image_size=SIZE)
    write_model(place / "own", ("one", "two"), latents=normalisation, origin="somewhere", **kept)
    short = {"steps": 1, "checkpoint_every": 1, "grid_per_class": 0, "init_from": str(place / "own")}
    train(settings(place, "heir", **short))
    heir = ray_dit.load(str(place / "heir/model"))
    assert heir.config.model_copy(update=kept) == heir.config
    assert heir.config.origin == "trained with ray-dit, starting from: somewhere"
    assert heir.config.latents == normalisation  # the VAE is the same
    other = settings(
        place, "else", **short, diffusion={"num_train_timesteps": 1000}
    )  # which is also the default
    train(other)
    assert ray_dit.load(str(place / "else/model")).config.diffusion.num_train_timesteps == 1000


def test_it_takes_the_size_of_the_model_it_starts_from_and_refuses_another_at_once(place: Path) -> None:
    write_model(place / "narrow", ("one", "two"))
    short = {"steps": 1, "checkpoint_every": 1, "grid_per_class": 0, "init_from": str(place / "narrow")}
    with pytest.raises(
        UserError, match="narrow: these weights fit no model with another hidden_size 16 -> 32"
    ):
        train(settings(place, "fitted", **short, model=DiTSizeConfig(hidden_size=32)))
    assert not (place / "fitted").exists()
    train(settings(place, "fitted", **short, model=DiTSizeConfig()))  # the corrected command
    fitted, narrow = (read_model(str(place / where)).config.model for where in ("fitted/model", "narrow"))
    assert fitted == narrow.model_copy(update={"num_classes": 3})


def test_a_normalisation_of_its_own_is_not_lost_with_a_vae_that_is_only_named(place: Path) -> None:
    own = LatentsConfig(shift=0.5, scale=0.3, image_size=SIZE)
    write_model(place / "named", ("one", "two"), latents=own, vae="someone/vae")
    short = {"steps": 1, "checkpoint_every": 1, "grid_per_class": 0}
    with pytest.raises(UserError, match="import the model again with --vae FOLDER"):
        train(settings(place, "lost", **short, init_from=str(place / "named")))
    assert not (place / "lost").exists()


def task_of(place: Path, **fields: Any) -> tuple[DiTTask, DiT]:
    """What a worker has after its setup."""
    config = settings(place, "none", **fields)
    latents = read_manifest(config.latents, LatentsResult)
    job = Job.open(open_store(str(place / "none-model")), "model", {"made": "by a test"})
    own = model_config_of(config, latents.facts, read_model(config.init_from) if config.init_from else None)
    one = DiTTask(config, own, latents, job, config.optimizer, None)
    model = one.setup(torch.device("cpu"))
    assert isinstance(model, DiT)
    return one, model


def test_options_of_training_reach_loss_and_model(place: Path) -> None:
    positions = np.arange(8)
    plain, model = task_of(place)
    weighted, _ = task_of(place, min_snr_gamma=1e-6)
    # so small a gamma leaves next to nothing of the squared error; the bound is not weighted
    low, high = (task.losses(model, task.batch(task.fetch(positions))).mean() for task in (weighted, plain))
    assert low < 0.1 * high
    assert not model.activation_checkpointing
    assert task_of(place, activation_checkpointing=True)[1].activation_checkpointing
    table = task_of(place, label_init_std=1.0)[1].y_embedder.embedding_table.weight
    assert 0.7 < table.std() < 1.3
    assert model.y_embedder.embedding_table.weight.std() < 0.03


def test_the_label_table_of_other_classes_has_the_deviation_asked_for(place: Path) -> None:
    write_model(place / "two", ("one", "two"))
    fields = {"init_from": str(place / "two"), "model": DiTSizeConfig()}
    assert 0.7 < task_of(place, **fields, label_init_std=1.0)[1].y_embedder.embedding_table.weight.std() < 1.3


def test_it_starts_from_a_model_of_another_resolution(place: Path) -> None:
    source = write_model(place / "small", ("left", "middle", "right")).state_dict()
    pictures = ImagesConfig(uri=str(place / "images"), size=2 * SIZE, heldout=0.1)
    output = str(place / "latents-large")
    encode(EncodeConfig(images=pictures, vae=str(place / "vae"), output=output, actors=1))
    fields = {"steps": 1, "checkpoint_every": 1, "grid_per_class": 0, "learning_rate": 1e-12}
    train(settings(place, "large", init_from=str(place / "small"), latents=output, **fields))
    pipe = ray_dit.load(str(place / "large/model"))
    tuned = pipe.model.state_dict()
    assert tuned["pos_embed"].shape[1] == 4 * source["pos_embed"].shape[1]
    assert all(torch.allclose(tuned[name], source[name], atol=1e-6) for name in source if name != "pos_embed")
    assert pipe(labels=["left"], steps=2)[0].size == (2 * SIZE, 2 * SIZE)


def test_a_sampler_the_schedule_can_not_follow_is_refused_at_once(place: Path) -> None:
    fields = {"diffusion": {"num_train_timesteps": 20}, "grid_per_class": 0}
    sampler = SamplerConfig(name="ddim", num_inference_steps=25)
    with pytest.raises(
        UserError, match="the model to be trained can't be sampled with these settings: 25 steps of 20"
    ):
        train(settings(place, "never", sampler=sampler, **fields))
    assert not (place / "never").exists()


def test_unlabelled_pictures_train_a_model_without_classes(place: Path) -> None:
    fields = {"steps": 2, "checkpoint_every": 2, "latents": str(place / "latents-unlabelled")}
    train(settings(place, "free", model_output=str(place / "free-model"), **fields))
    pipe = ray_dit.load(str(place / "free-model"))
    assert pipe.config.model.num_classes == 0
    assert not pipe.labels.names
    assert [image.size for image in pipe(num_images=2, steps=2)] == [(SIZE, SIZE)] * 2
    with pytest.raises(UserError, match="no classes"):
        pipe(labels=[0])


def test_workers_that_do_not_divide_the_batch_are_refused(place: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 4 is not a multiple of num_workers 3"):
        settings(place, "odd", num_workers=3)


def test_the_model_of_a_finished_run_is_made_again(place: Path, trained: Manifest[TrainingResult]) -> None:
    weights = place / "run/model/model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert train(settings(place, "run")) == trained
    assert weights.read_bytes() == before
