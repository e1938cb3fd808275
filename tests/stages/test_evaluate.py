"""Evaluation of a small fabricated dataset: figures known beforehand, the same bytes after any break."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from ray_dit.config import ClassifierConfig, EvaluateConfig, ImagesConfig
from ray_dit.core.metrics import FeatureStatistics
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.images import plan_images
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import read_manifest
from ray_dit.ledger.results import Marker
from ray_dit.metrics.statistics import counts, moment_tensors, moments
from ray_dit.results import ClassifierFacts, DatasetResult, EvaluationResult
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.shard_maker import make_shard
from ray_dit.stages import evaluate as stage
from ray_dit.stages.evaluation_data import JUDGE, ON_GENERATED, ON_REAL, EvaluationData
from ray_dit.storage.open import open_store
from tests.support.results import dataset_result, image_facts, manifest_of
from tests.support.tiny import flip_bit, shard_bytes

SIZE = 16
CLASSES = ("bottom", "top")
NUM_REAL = 80
CLASSIFIER = ClassifierConfig(steps=30, batch_size=16, learning_rate=5e-3, width=4)


def picture(label: int, number: int) -> np.ndarray:
    """Noise, its upper or lower half bright."""
    image = np.random.default_rng((label, number)).integers(0, 128, (SIZE, SIZE, 3), dtype=np.uint8)
    half = image[SIZE // 2 :] if label == 0 else image[: SIZE // 2]
    half += 127
    return image


def png(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()


def write_real(folder: Path) -> None:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(NUM_REAL // 2):
            (folder / name / f"{number:03d}.png").write_bytes(png(picture(label, number)))


def write_dataset(
    folder: Path, shards: list[list[tuple[int, np.ndarray]]], classes: tuple[str, ...] = CLASSES
) -> None:
    """A dataset folder as generate leaves it: ``shards`` of (label, picture)."""
    job = Job.open(open_store(str(folder)), "generate", {"made": "by a test"})
    markers = []
    first = 0
    for number, rows in enumerate(shards):
        labels, images = zip(*rows, strict=True)
        ids = range(first, first + len(rows))
        data = shard_bytes([png(image) for image in images], labels, list(ids), classes)
        markers.append(
            job.put(f"{number:05d}", f"data/{number}.parquet", data, image_facts(number, len(rows)))
        )
        first += len(rows)
    job.finish(dataset_result(rows=first, classes=classes), objects=markers)


def good_shards(*sizes: int) -> list[list[tuple[int, np.ndarray]]]:
    return [
        [(number % 2, picture(number % 2, 1000 * (shard + 1) + number)) for number in range(size)]
        for shard, size in enumerate(sizes)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_real(tmp_path / "images")
    return tmp_path


def settings(
    folder: Path, output: str = "evaluation", heldout: float = 0.4, **fields: object
) -> EvaluateConfig:
    images = ImagesConfig(uri=str(folder / "images"), size=SIZE, heldout=heldout)
    return EvaluateConfig(
        images=images,
        dataset=str(folder / "dataset"),
        output=str(folder / output),
        classifier=CLASSIFIER,
        **fields,  # type: ignore[arg-type]
    )


def data_of(config: EvaluateConfig, num_generated: int) -> EvaluationData:
    result = dataset_result(rows=num_generated, classes=CLASSES)
    return EvaluationData(config, plan_images(config.images), manifest_of(result))


def measurer_of(data: EvaluationData, job: Job) -> stage.Measurer:
    return stage.Measurer(data, {name: stage.load_classifier(job, name) for name in data.classifiers})


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the records of runs."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "_runs" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_dataset_without_classes_is_sent_elsewhere(folder: Path):
    write_dataset(folder / "dataset", [[(0, picture(0, 1)), (0, picture(0, 2))]], ())
    with pytest.raises(UserError, match="made without classes.*jobs.fid"):
        stage.evaluate(settings(folder))


@pytest.mark.ray
def test_good_and_wrong_pictures_are_told_apart_and_a_broken_run_ends_in_the_same_bytes(folder: Path):
    # A third of the generated pictures show the other class than their label says.
    shards = [
        [(label, picture(1 - label if number % 3 == 0 else label, 500 + number)) for label, number in rows]
        for rows in ([(number % 2, number) for number in range(first, first + 12)] for first in (0, 12))
    ]
    write_dataset(folder / "dataset", shards)
    config = settings(folder)
    with ray_session(config):
        manifest = stage.evaluate(config)
        before = contents(folder / "evaluation")
        for name in ("manifest.json", "metrics.json", "_markers/00001.json", f"_markers/{ON_GENERATED}.json"):
            (folder / "evaluation" / name).unlink()
        stage.evaluate(config)
        assert contents(folder / "evaluation") == before
        for key in (f"classifiers/{JUDGE}.safetensors", "measures/00001.safetensors", "metrics.json"):
            flip_bit(folder / "evaluation" / key)
        assert stage.evaluate(config) == manifest
    assert contents(folder / "evaluation") == before
    metrics = json.loads((folder / "evaluation/metrics.json").read_text())
    assert metrics == manifest.facts.to_json()
    assert metrics["class_accuracy_real_heldout"] == 1.0
    assert metrics["class_accuracy"] == pytest.approx(2 / 3)
    assert metrics["cas_accuracy_real"] == 1.0
    assert metrics["frechet_distance"] > 0
    assert metrics["num_images"] == 24
    assert metrics["num_train"] + metrics["num_heldout"] == NUM_REAL
    assert metrics["frechet_images"] == 24
    assert metrics["cas_images"] == 24
    assert set(metrics["per_class_accuracy"]) == set(CLASSES)


def test_a_damaged_shard_of_the_dataset_is_not_measured(folder: Path):
    write_dataset(folder / "dataset", good_shards(8, 5))
    flip_bit(folder / "dataset/data/0.parquet")
    with pytest.raises(UserError, match="data/0.parquet does not hold what was written there"):
        stage.evaluate(settings(folder))


def test_a_damaged_classifier_is_not_used(folder: Path):
    store = open_store(str(folder))
    job = Job.open(store, "evaluate", {"made": "by a test"})
    name = "judge"
    facts = ClassifierFacts(classifier=name, images=1, num_classes=2, image_size=SIZE, width=4)
    job.put(name, f"classifiers/{name}.safetensors", b"weights", facts)
    flip_bit(folder / f"classifiers/{name}.safetensors")
    with pytest.raises(UserError, match=r"judge.safetensors does not hold what was written there"):
        stage.load_classifier(job, name)


def test_a_finished_evaluation_is_returned_without_work(folder: Path):
    write_dataset(folder / "dataset", good_shards(4))
    config = settings(folder, address="127.0.0.1:1")  # nobody answers there, and nobody is asked
    data = data_of(config, 4)
    with pytest.raises(UserError, match="127.0.0.1:1"):
        stage.evaluate(config)
    job = json.loads((folder / "evaluation/_job.json").read_text())
    Job.open(open_store(config.output), "evaluate", job["parts"]).finish(
        EvaluationResult(num_images=4, num_train=5, num_heldout=6, class_accuracy=0.5), objects=[]
    )
    assert stage.evaluate(config).facts.figures["class_accuracy"] == 0.5
    assert data.num_generated == 4


def put_piece(measurer: stage.Measurer, job: Job, piece: int) -> Marker[Any]:
    """What an actor does with a piece."""
    made = make_shard(measurer, piece)
    return job.put(stage.shard_name(piece), made.key, made.data, made.facts)


def test_measures_of_pieces_add_up_to_those_of_the_whole(folder: Path):
    """Without Ray: the same functions its tasks call."""
    write_dataset(folder / "dataset", good_shards(8, 5))
    config = settings(folder)
    data = EvaluationData(config, plan_images(config.images), read_manifest(config.dataset, DatasetResult))
    job = Job.open(open_store(config.output), "evaluate", {})
    for name in data.classifiers:
        stage.train_one(data, job, name)
    measurer = measurer_of(data, job)
    markers = [put_piece(measurer, job, piece) for piece in range(data.num_pieces)]
    assert [marker.facts.of for marker in markers] == ["train", "heldout", "generated", "generated"]
    assert make_shard(measurer_of(data, job), 0) == make_shard(measurer, 0)
    compared = {marker.key: int(load(job.store.get(marker.key))["count"]) for marker in markers[1:]}
    assert list(compared.values()) == [13, 8, 5]  # held out, and the two generated shards
    manifest = stage._finish(data, job)
    figures = manifest.facts.figures
    assert figures["class_accuracy"] == 1.0
    assert figures["frechet_images"] == manifest.facts.num_images == 13
    assert figures["frechet_distance"] < 50 * max(1.0, figures["frechet_distance_real_heldout"])


def test_pieces_are_merged_not_replaced():
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    total = stage.Total()
    for part in features.split([4, 6]):
        piece = FeatureStatistics.of(part)
        hits = {"counts.judge": torch.tensor([[1, 0], [2, 3]])}
        total.add(moment_tensors(piece) | hits, rows=len(part))
    whole, merged = FeatureStatistics.of(features), moments(total.tensors)
    assert (total.rows, merged.count) == (10, 10)
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.covariance, whole.covariance)
    assert counts(total.tensors, JUDGE).tolist() == [[2, 0], [4, 6]]


def test_each_figure_is_of_its_own_pictures_and_classifier(folder: Path):
    def total(mean: float, **hits: int) -> stage.Total:
        statistics = FeatureStatistics(2, torch.full((1,), mean).double(), torch.ones(1, 1).double())
        counted = {f"counts.{name}": torch.tensor([[hit, 0], [10, 0]]) for name, hit in hits.items()}
        return stage.Total(moment_tensors(statistics) | counted)

    train, generated = total(0.0, judge=1), total(2.0, judge=2)
    heldout = total(1.0, judge=3, cas_generated=4, cas_real=5)
    metrics = stage._result(data_of(settings(folder), 10), train, heldout, generated).figures
    names = ("class_accuracy", "class_accuracy_real_heldout", "cas_accuracy", "cas_accuracy_real")
    assert [metrics[name] for name in names] == [0.2, 0.3, 0.4, 0.5]
    assert metrics["frechet_distance"] == pytest.approx(4.0)
    assert metrics["frechet_distance_real_heldout"] == pytest.approx(1.0)
    assert metrics["per_class_accuracy"] == {"bottom": 0.2, "top": None}
    everything = stage._result(data_of(settings(folder), 5000), train, heldout, generated)
    assert everything.figures["cas_accuracy_real"] == 0.3  # as many real ones are all of them: the judge


def test_a_real_picture_nobody_can_read_is_counted_and_too_many_are_refused(folder: Path):
    (folder / "images/top/000.png").write_bytes(b"broken")
    write_dataset(folder / "dataset", good_shards(6))
    config = settings(folder)
    data = EvaluationData(config, plan_images(config.images), read_manifest(config.dataset, DatasetResult))
    job = Job.open(open_store(config.output), "evaluate", {})
    for name in data.classifiers:
        stage.train_one(data, job, name)
    for piece in range(data.num_pieces):
        put_piece(measurer_of(data, job), job, piece)
    with pytest.raises(UserError, match="1 of 80 images .*top/000.png"):
        stage._finish(data, job)
    images = config.images.model_copy(update={"max_bad": 0.05})
    lenient = replace(data, config=config.model_copy(update={"images": images}))
    assert stage._finish(lenient, job).facts.bad == 1
    assert json.loads((folder / "evaluation/metrics.json").read_bytes())["bad"] == 1


def test_a_real_picture_that_is_gone_or_changed_stops_it_by_name(folder: Path):
    """Nothing of an evaluation depends on when it ran."""
    write_dataset(folder / "dataset", good_shards(6))
    data = stage.inputs_of(settings(folder))
    measurer = stage.Measurer(data, {})
    first = folder / "images" / data.plan.keys[data.real_pieces[0][0]]
    first.write_bytes(b"another")
    with pytest.raises(Conflict, match=f"{first.name} is not what it was when its images were planned"):
        measurer.prepare(0)
    shutil.rmtree(folder / "images")
    for read in (lambda: measurer.prepare(0), lambda: data.training_images(JUDGE)):
        with pytest.raises(NotFound, match=r"\.png is gone since its images were planned: bring it back"):
            read()


def test_classes_are_compared_in_the_order_of_the_dataset(folder: Path):
    """Extended latents number new classes after the old ones, whatever their names."""
    write_dataset(folder / "dataset", good_shards(6), classes=CLASSES[::-1])
    plan = stage.inputs_of(settings(folder)).plan
    assert plan.classes == CLASSES[::-1]
    assert [plan.classes[label] for label in plan.labels] == [key.split("/")[0] for key in plan.keys]


@pytest.mark.parametrize(
    ("num_generated", "classifiers", "cas"),
    [(10, (JUDGE, ON_GENERATED, ON_REAL), 10), (5000, (JUDGE, ON_GENERATED), None)],
)
def test_both_accuracy_scores_are_of_equal_counts(
    folder: Path, num_generated: int, classifiers: object, cas: int | None
):
    data = data_of(settings(folder), num_generated)
    num_train = int((~data.plan.heldout).sum())
    assert data.classifiers == classifiers
    assert data.training_count(ON_GENERATED) == data.training_count(ON_REAL) == (cas or num_train)
    assert data.training_count(JUDGE) == num_train


def test_training_loads_no_more_pictures_than_its_steps_look_at(folder: Path):
    config = settings(folder).model_copy(update={"classifier": ClassifierConfig(steps=2, batch_size=3)})
    data = data_of(config, 5000)
    assert {data.training_count(name) for name in (JUDGE, ON_GENERATED, ON_REAL)} == {6}
    images, labels = data.training_images(JUDGE)
    assert (len(images), len(labels)) == (6, 6)


def test_classifiers_never_see_held_out_pictures(folder: Path):
    data = data_of(settings(folder), 5000)
    seen = {image.tobytes() for image in data.training_images(JUDGE)[0]}
    heldout = [data.plan.keys[row] for row in data.plan.rows(heldout=True)]
    assert heldout
    assert len(seen) == NUM_REAL - len(heldout)
    for key in heldout:
        name, number = key.split("/")
        image = picture(CLASSES.index(name) if name in CLASSES else -1, int(number.removesuffix(".png")))
        assert image.tobytes() not in seen


def test_generated_pictures_are_found_by_their_place_in_the_dataset(folder: Path):
    shards = good_shards(5, 3, 4)
    write_dataset(folder / "dataset", shards)
    config = settings(folder)
    data = EvaluationData(config, plan_images(config.images), read_manifest(config.dataset, DatasetResult))
    everything = [row for rows in shards for row in rows]
    wanted = np.array([0, 4, 5, 11])
    images, labels = data.generated(wanted)
    assert labels.tolist() == [everything[place][0] for place in wanted]
    for image, place in zip(images, wanted, strict=True):
        np.testing.assert_array_equal(image, everything[place][1])


@pytest.mark.parametrize(
    ("classes", "said"),
    [(("left", "top"), "'bottom' is in only one"), (("bottom",), "has 1 classes and")],
)
def test_other_classes_are_refused(folder: Path, classes: tuple[str, ...], said: str):
    write_dataset(folder / "dataset", [[(0, picture(0, 0))]], classes)
    with pytest.raises(UserError, match=said):
        stage.evaluate(settings(folder))


def test_without_held_out_pictures_there_is_nothing_to_compare_with(folder: Path):
    write_dataset(folder / "dataset", good_shards(6))
    with pytest.raises(UserError, match="0 held-out and 6 generated .* --images.heldout"):
        stage.evaluate(settings(folder, heldout=0.0))


def test_generated_pictures_of_another_size_are_refused(folder: Path):
    write_dataset(folder / "dataset", [[(0, np.zeros((8, 8, 3), np.uint8))]])
    config = settings(folder)
    data = EvaluationData(config, plan_images(config.images), read_manifest(config.dataset, DatasetResult))
    with pytest.raises(UserError, match="8x8, .* 16x16: give --images.size 8"):
        data.generated(np.array([0]))
    write_dataset(folder / "small", [[(n % 2, np.zeros((8, 8, 3), np.uint8)) for n in range(2)]])
    with pytest.raises(UserError, match="give --images.size 8"):
        stage.evaluate(config.model_copy(update={"dataset": str(folder / "small")}))
    assert not Path(config.output).exists()


def test_what_is_no_dataset_is_refused(folder: Path):
    with pytest.raises(UserError, match="dataset .*run ray-dit generate first"):
        stage.evaluate(settings(folder))
