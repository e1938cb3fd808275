"""A dataset of an imported model of 1,000 classes beside 1,000 folders of images. Without Ray."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_dit.config import ClassifierConfig, DiTConfig, EvaluateConfig, ImagesConfig
from ray_dit.core.dit import DiT
from ray_dit.errors import UserError
from ray_dit.formats.labels import Labels
from ray_dit.ledger.job import Job
from ray_dit.runtime.shard_maker import make_shard, shard_name
from ray_dit.stages import evaluate as stage
from ray_dit.storage.open import open_store
from tests.support.checkpoints import imported
from tests.support.made_datasets import dataset_config, make_dataset
from tests.support.tiny import SIZE, write_vae

WORDNET = Labels.imagenet().wordnet_ids
NUMBERED = tuple(f"n{number}" for number in range(1, 1001))
"""Folders whose order by letter is another than that by number."""
CLASSIFIER = ClassifierConfig(steps=2, batch_size=8, width=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official checkpoint of a tiny model, and a VAE beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shape = DiTConfig(
        hidden_size=16, depth=1, num_heads=2, num_classes=1000, input_size=SIZE // 2, in_channels=4
    )
    torch.save(DiT(shape).state_dict(), folder / "model.pt")
    write_vae(folder / "vae")
    return folder


def write_images(folder: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number}.png")


def inputs(root: Path, checkpoint: Path, folders: tuple[str, ...], names: str | None) -> EvaluateConfig:
    """A dataset of 12 classes of the imported model, beside an image in each of these folders."""
    told = {"labels": names} if names else {}
    model = imported(
        checkpoint / "model.pt", root / "model", num_heads=2, vae=str(checkpoint / "vae"), **told
    )
    write_images(root / "images", folders)
    asked = tuple(str(number) for number in range(0, 1000, 90))
    make_dataset(
        dataset_config(Path(model), root / "dataset", num_images=12, classes=None if names else asked)
    )
    images = ImagesConfig(uri=str(root / "images"), size=SIZE, heldout=0.1)
    return EvaluateConfig(
        images=images, dataset=str(root / "dataset"), output=str(root / "evaluation"), classifier=CLASSIFIER
    )


def evaluated(config: EvaluateConfig) -> dict[str, object]:
    """What an evaluation finds, made in this process."""
    data = stage.inputs_of(config)
    job = Job.open(open_store(config.output), "evaluate", {})
    for name in data.classifiers:
        stage.train_one(data, job, name)
    measurer = stage.Measurer(data, {name: stage.load_classifier(job, name) for name in data.classifiers})
    for piece in range(data.num_pieces):
        made = make_shard(measurer, piece)
        job.put(shard_name(piece), made.key, made.data, made.facts)
    return dict(stage._finish(data, job).facts.figures)


def test_folders_of_wordnet_ids_are_those_of_the_classes(checkpoint: Path, tmp_path: Path) -> None:
    config = inputs(tmp_path, checkpoint, WORDNET, None)
    data = stage.inputs_of(config)
    assert data.plan.classes == WORDNET
    rows = zip(data.plan.keys, data.plan.labels.tolist(), strict=True)
    assert all(WORDNET[label] == key.partition("/")[0] for key, label in rows)
    figures = evaluated(config)
    assert figures["per_class_accuracy"].keys() == {*WORDNET}  # type: ignore[attr-defined]
    assert 0 <= figures["class_accuracy"] <= 1  # type: ignore[operator]


@pytest.mark.parametrize("order", ["torchvision", "natural"])
def test_folders_of_another_order_than_the_classes(checkpoint: Path, tmp_path: Path, order: str) -> None:
    names = sorted(NUMBERED) if order == "torchvision" else list(NUMBERED)
    (tmp_path / "names.txt").write_text("\n".join(names))
    config = inputs(tmp_path, checkpoint, NUMBERED, str(tmp_path / "names.txt"))
    data = stage.inputs_of(config)
    assert list(data.plan.classes) == names
    rows = zip(data.plan.keys, data.plan.labels.tolist(), strict=True)
    assert all(names[label] == key.partition("/")[0] for key, label in rows)
    assert data.generated(np.arange(12))[1].tolist() == list(range(12))


def test_folders_of_other_classes_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = inputs(tmp_path, checkpoint, (*WORDNET[:-1], "n99999999"), None)
    with pytest.raises(UserError, match="has 1000 classes and .* has 1000, and 'n99999999' is in only one"):
        stage.inputs_of(config)
