"""generate on a real Ray: the same bytes whoever makes them, the pipeline's images, a dataset that opens."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_dit
from ray_dit.config import EvaluateConfig, GenerateConfig, ImagesConfig, SamplerConfig
from ray_dit.core.media import decode
from ray_dit.errors import Conflict, Damaged, NotFound, UserError
from ray_dit.folders.dataset import read_shard
from ray_dit.folders.images import plan_images
from ray_dit.formats.dataset_card import size_category
from ray_dit.formats.labels import Labels
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import last_generation, manifest_objects, read_manifest
from ray_dit.results import RESULTS, DatasetResult, ImageShardFacts
from ray_dit.stages.dataset_plan import DatasetPlan
from ray_dit.stages.evaluation_data import EvaluationData
from ray_dit.stages.generate import generate, plan_dataset
from ray_dit.storage.open import open_store
from tests.support.made_datasets import make_dataset
from tests.support.tiny import (
    SAMPLER,
    SIZE,
    contents,
    flip_bit,
    kinds_of_machines,
    times,
    write_model,
    write_pictures,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

NAMES = ("left", "middle", "right")
NUM_IMAGES, SHARD, BATCH, SEED = 11, 4, 3, 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    write_model(folder / "model", NAMES)
    return folder


def settings(place: Path, output: str, **fields: Any) -> GenerateConfig:
    known: dict[str, Any] = {"num_images": NUM_IMAGES, "shard_size": SHARD, "batch_size": BATCH, "seed": SEED}
    known["model"] = str(place / "model")
    return GenerateConfig(output=str(place / output), **(known | fields))


@pytest.fixture(scope="module")
def made(place: Path, one_ray: Any) -> dict[str, Any]:
    return generate(settings(place, "dataset", actors=2))


def rows(folder: Path) -> dict[int, tuple[int, bytes]]:
    """Label and PNG of each picture by its number."""
    found = [
        read_shard(open_store(str(folder)), str(path.relative_to(folder)))
        for path in sorted((folder / "data").glob("*.parquet"))
    ]
    return {
        int(number): (int(label), png)
        for shard in found
        for number, label, png in zip(shard.ids, shard.labels, shard.images, strict=True)
    }


def test_a_model_that_knows_no_null_class_is_not_said_to_be_guided(place: Path) -> None:
    write_model(
        place / "undropped", NAMES, dropout=0.0, sampler=SAMPLER.model_copy(update={"guidance_scale": 4.0})
    )
    fields = {"num_images": 1, "model": str(place / "undropped")}
    asked = settings(place, "guided", **fields, sampler=SamplerConfig(guidance_scale=2.0))
    with pytest.raises(UserError, match="can't be guided: leave --sampler.guidance-scale out"):
        generate(asked)
    made = generate(settings(place, "unguided", **fields))
    assert made.facts.sampler.guidance_scale == 1.0


def test_settings_that_can_not_be_followed_leave_the_folder_free(place: Path) -> None:
    wrong = SamplerConfig(timesteps=(5000.0, 20.0))
    with pytest.raises(UserError, match="can't be sampled with these settings: timesteps must lie in"):
        generate(settings(place, "free", sampler=wrong))
    assert not (place / "free").exists()
    with pytest.raises(ValueError, match="classes needs a name or number"):
        settings(place, "free", classes=())


def test_one_actor_makes_the_bytes_of_two(place: Path, made: dict[str, Any]) -> None:
    generate(settings(place, "alone", actors=1, preview=str(place / "alone.png")))
    assert contents(place / "alone") == contents(place / "dataset")
    assert decode((place / "alone.png").read_bytes()).shape[2] == 3, "a picture was drawn while it ran"


def test_every_picture_is_the_pipelines_at_its_canonical_batch(place: Path, made: dict[str, Any]) -> None:
    import io

    from PIL import Image

    found = rows(place / "dataset")
    assert sorted(found) == list(range(NUM_IMAGES))
    pipe = ray_dit.load(str(place / "model"), device="cpu")
    for first in range(0, NUM_IMAGES, SHARD):
        ids = list(range(first, min(first + SHARD, NUM_IMAGES)))
        for start in range(0, len(ids), BATCH):
            batch = ids[start] + np.arange(BATCH)
            labels = [int(number % len(NAMES)) for number in batch]
            latents = pipe.sample_latents(labels, sample_ids=batch.tolist(), seed=SEED, sampler=SAMPLER)
            for number, label, picture in zip(batch, labels, pipe.decode(latents), strict=True):
                if number in ids:
                    stored = np.asarray(Image.open(io.BytesIO(found[int(number)][1])))
                    assert np.array_equal(stored, picture)
                    assert found[int(number)][0] == label
    assert len({png for _, png in found.values()}) == NUM_IMAGES


def test_labels_are_balanced_in_every_shard(place: Path, made: dict[str, Any]) -> None:
    labels = [label for _, (label, _) in sorted(rows(place / "dataset").items())]
    assert np.bincount(labels).tolist() == [4, 4, 3]
    for first in range(0, NUM_IMAGES, SHARD):
        counts = np.bincount(labels[first : first + SHARD], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_datasets_opens_it(
    place: Path, made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    datasets = pytest.importorskip("datasets")
    for source in (
        {"path": "parquet", "data_files": str(place / "dataset/data/train-*.parquet")},
        {"path": str(place / "dataset")},
    ):
        opened = datasets.load_dataset(split="train", cache_dir=str(tmp_path / "cache"), **source)
        assert isinstance(opened.features["image"], datasets.Image)
        assert opened.features["label"] == datasets.ClassLabel(names=list(NAMES))
        assert opened["id"][:] == list(range(NUM_IMAGES))
        assert opened[4]["image"].size == (SIZE, SIZE)
        assert opened[4]["label"] == 1


def test_running_it_again_extends_nothing(place: Path, made: dict[str, Any]) -> None:
    before = times(place / "dataset")
    assert generate(settings(place, "dataset", actors=1)) == made
    assert times(place / "dataset") == before


def test_another_number_of_pictures_is_refused(place: Path, made: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match="config.num_images: 11 -> 12.* or add --extend to keep what is there"):
        generate(settings(place, "dataset", num_images=12))
    with pytest.raises(Conflict, match="config.seed: 5 -> 6") as refused:
        generate(settings(place, "dataset", num_images=12, seed=6))
    assert "--extend" not in str(refused.value)


# Extensions: 11 images become 14, then 17, in the middle of a shard and of a batch


@pytest.fixture(scope="module")
def extended(place: Path, made: dict[str, Any]) -> Path:
    folder = place / "extended"
    shutil.copytree(place / "dataset", folder)
    before = contents(folder)
    for count in (14, 17):
        manifest = generate(settings(place, "extended", num_images=count, extend=True))
        assert manifest.facts.rows == count
    after = contents(folder)
    assert {key for key in before if after[key] != before[key]} == {"README.md"}
    return folder


def test_an_extension_has_the_images_of_a_dataset_made_in_one_go(place: Path, extended: Path) -> None:
    generate(settings(place, "whole", num_images=17))
    assert rows(extended) == rows(place / "whole")
    manifest = read_manifest(str(extended), DatasetResult)
    listed = manifest_objects(open_store(str(extended)), manifest, ImageShardFacts)
    ids = [(marker.key, marker.facts.first_id, marker.facts.rows) for marker in listed]
    assert ids == [
        ("data/train-00000-of-00003.parquet", 0, 4),
        ("data/train-00001-of-00003.parquet", 4, 4),
        ("data/train-00002-of-00003.parquet", 8, 3),
        ("data/g01-train-00000-of-00002.parquet", 11, 1),
        ("data/g01-train-00001-of-00002.parquet", 12, 2),
        ("data/g02-train-00000-of-00002.parquet", 14, 2),
        ("data/g02-train-00001-of-00002.parquet", 16, 1),
    ]
    assert list(verify(open_store(str(extended)), results=RESULTS)) == []


def test_evaluate_reads_the_images_of_all_generations_by_their_numbers(
    place: Path, extended: Path, tmp_path: Path
) -> None:
    images = ImagesConfig(uri=str(tmp_path / "images"), size=SIZE, heldout=0.1)
    write_pictures(tmp_path / "images", dict.fromkeys(NAMES, 4))
    config = EvaluateConfig(images=images, dataset=str(extended), output=str(tmp_path / "evaluation"))
    manifest = read_manifest(str(extended), DatasetResult)
    data = EvaluationData(config, plan_images(images), manifest)
    pixels, labels = data.generated(np.arange(17))
    assert (data.num_generated, labels.tolist()) == (17, [number % 3 for number in range(17)])
    found = rows(extended)
    assert all(np.array_equal(pixels[number], decode(found[number][1])) for number in range(17))


def test_datasets_opens_all_of_it(extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    datasets = pytest.importorskip("datasets")
    opened = datasets.load_dataset(str(extended), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened["id"][:] == list(range(17))
    assert opened.features["label"] == datasets.ClassLabel(names=list(NAMES))
    assert "17 generated" in (extended / "README.md").read_text()


def test_what_is_not_finished_is_not_opened(
    place: Path, extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "begun"
    shutil.copytree(extended, folder)
    shutil.copy(place / "dataset/README.md", folder / "README.md")
    opened = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened["id"][:] == list(range(NUM_IMAGES))


def test_the_commands_of_before_change_nothing(place: Path, extended: Path) -> None:
    before = times(extended)
    for count in (NUM_IMAGES, 14, 17):
        assert generate(settings(place, "extended", num_images=count)).facts.rows == count
    assert generate(settings(place, "extended", num_images=17, extend=True)).facts.rows == 17
    assert times(extended) == before


def test_a_damaged_shard_of_any_generation_is_repaired(place: Path, extended: Path) -> None:
    before = contents(extended)
    for count in (NUM_IMAGES, 17):
        for path in [*(extended / "data").glob("*00000-of*"), extended / "README.md"]:
            flip_bit(path)
        generate(settings(place, "extended", num_images=count, repair=True))
        assert contents(extended) == before


def test_an_extension_by_the_other_count_is_the_same(place: Path, extended: Path, tmp_path: Path) -> None:
    shutil.copytree(extended, tmp_path / "extended")
    per_class = settings(tmp_path, "extended", num_images=None, per_class=6, model=str(place / "model"))
    assert generate(per_class.model_copy(update={"extend": True})).facts.rows == 18
    in_all = settings(tmp_path, "extended", num_images=18, extend=True, model=str(place / "model"))
    assert generate(in_all).facts.rows == 18
    assert last_generation(open_store(str(tmp_path / "extended"))) == 3


def test_what_is_no_extension_is_refused_before_anything_is_written(place: Path, extended: Path) -> None:
    before = times(extended)
    with pytest.raises(UserError, match="has 17 images already: ask for more to extend it"):
        generate(settings(place, "extended", num_images=16, extend=True))
    with pytest.raises(UserError, match="has 17 images already: ask for more to extend it"):
        generate(settings(place, "extended", num_images=14, extend=True))
    with pytest.raises(Conflict, match=r"can't be extended with other settings .*\(config.seed: 5 -> 6\)"):
        generate(settings(place, "extended", num_images=20, extend=True, seed=6))
    with pytest.raises(NotFound, match="holds no job of ray-dit, where a dataset"):
        generate(settings(place, "nothing", num_images=20, extend=True))
    assert times(extended) == before


def test_an_extended_folder_that_does_not_tell_its_counts_is_left_alone(
    place: Path, extended: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "silent"
    shutil.copytree(extended, folder)
    asked = settings(tmp_path, "silent", model=str(place / "model"), num_images=17)
    flip_bit(folder / "_job-g01.json")
    assert generate(asked).facts.rows == 17  # the manifest repeats it
    flip_bit(folder / "manifest-g01.json")
    with pytest.raises(Damaged, match=r"_job-g01.json is damaged, and so is the manifest that repeats it"):
        generate(asked)


def test_an_unfinished_extension_goes_on_with_and_without_the_flag(
    place: Path, extended: Path, tmp_path: Path
) -> None:
    for extend in (False, True):
        folder = place / f"stopped-{extend}"
        shutil.copytree(extended, folder)
        for path in [folder / "manifest-g02.json", *folder.glob("manifest/*g02*")]:
            path.unlink()
        shutil.copy(place / "dataset/README.md", folder / "README.md")
        (folder / "_plain-g02/README.md.json").unlink()
        (folder / "_markers-g02/00006.json").unlink()
        (folder / "data/g02-train-00001-of-00002.parquet").unlink()
        with pytest.raises(UserError, match="is being extended to 17 images: finish that first"):
            generate(settings(place, folder.name, num_images=18, extend=True))
        generate(settings(place, folder.name, num_images=17, extend=extend))
        assert contents(folder) == contents(extended)


def test_the_labels_of_an_extension_are_those_of_the_numbers() -> None:
    whole, grown = DatasetPlan((2, 0, 1), (23,), 4), DatasetPlan((2, 0, 1), (5, 6, 14, 23), 4)
    ids = [grown.ids(shard) for part in range(4) for shard in grown.of(part).work.numbers]
    assert np.concatenate(ids).tolist() == list(range(23))
    assert np.array_equal(grown.labels(np.arange(23)), whole.labels(np.arange(23)))
    canonical = {
        int(number): batch.tolist()
        for shard in range(6)
        for batch in whole.batches(shard, 3)
        for number in np.intersect1d(batch, whole.ids(shard))
    }
    for shard in range(len(ids)):
        for batch in grown.batches(shard, 3):
            own = np.intersect1d(batch, grown.ids(shard))
            assert all(canonical[int(number)] == batch.tolist() for number in own)


@pytest.mark.parametrize("count", [1, 99_999, 100_000, 100_001, 1_000_001])
def test_shards_sort_by_name_as_by_number(count: int) -> None:
    plan = DatasetPlan((0,), (count,), shard_size=1)
    numbers = {0, 1, count // 10 - 1, count // 10, 99_999, 100_000, count - 2, count - 1}
    extension = DatasetPlan((0,), (3, count + 3), shard_size=1, generation=1)
    assert extension.name(3 + count - 1) == plan.name(count - 1).replace("train", "g01-train")
    names = [plan.name(number) for number in sorted(numbers) if 0 <= number < count]
    assert names == sorted(names)
    if count <= 100_000:  # folders of before have these
        assert names[-1] == f"data/train-{count - 1:05d}-of-{count:05d}"


def test_classes_by_name_and_number(place: Path) -> None:
    chosen = settings(place, "chosen", num_images=None, per_class=2, classes=("right", "0", "right"))
    plan = plan_dataset(chosen, Labels(NAMES))
    assert (plan.classes, plan.num_images) == ((2, 0), 4)
    with pytest.raises(UserError, match="no class 'rihgt'; did you mean 'right'"):
        plan_dataset(settings(place, "chosen", classes=("rihgt",)), Labels(NAMES))


def test_other_sampler_settings_are_written_down(place: Path) -> None:
    sampler = SamplerConfig(num_inference_steps=2, guidance_scale=1.0)
    manifest = generate(settings(place, "quick", num_images=2, sampler=sampler, classes=("middle",)))
    expected = SAMPLER.model_copy(update={"num_inference_steps": 2, "guidance_scale": 1.0})
    assert manifest.facts.sampler.to_json() == expected.model_dump(mode="json")
    assert [label for label, _ in rows(place / "quick").values()] == [1, 1]


def test_a_rerun_puts_back_the_card(place: Path, made: dict[str, Any]) -> None:
    assert kinds_of_machines(place / "dataset") == 1
    before = contents(place / "dataset")
    flip_bit(place / "dataset/README.md")
    assert generate(settings(place, "dataset")) == made
    assert contents(place / "dataset") == before


def test_a_damaged_model_is_not_used(place: Path) -> None:
    for key in ("config.json", "labels.json", "vae/config.json"):
        shutil.copytree(place / "model", place / "damaged", dirs_exist_ok=True)
        flip_bit(place / "damaged" / key)
        with pytest.raises(UserError, match=f"{key} is not what was written|can't be read"):
            generate(settings(place, "of-damaged", model=str(place / "damaged")))


def test_repair_restores_the_very_bytes(place: Path, made: dict[str, Any]) -> None:
    before = contents(place / "dataset")
    damaged = sorted((place / "dataset/data").glob("*.parquet"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    assert generate(settings(place, "dataset", repair=True)) == made
    assert contents(place / "dataset") == before


@pytest.mark.parametrize("name", ["folder", "webdataset", "npz"])
def test_every_format_is_the_same_by_actors_and_alone_and_is_repaired(place: Path, name: str) -> None:
    fields: dict[str, Any] = {"format": name, "guidance_scales": (1.0, 2.0)}
    generate(settings(place, f"by-actors-{name}", actors=2, **fields))
    config = settings(place, f"alone-{name}", **fields)
    make_dataset(config)
    before = contents(place / f"by-actors-{name}")
    assert contents(place / f"alone-{name}") == before
    folder = place / f"by-actors-{name}"
    images = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".tar", ".npz"))
    images[0].unlink()
    flip_bit(images[-1])
    flip_bit(next(folder.glob("data/*00001-of*")))
    flip_bit(folder / "README.md")
    generate(settings(place, f"by-actors-{name}", repair=True, **fields))
    assert contents(folder) == before
    for path in (folder / "manifest.json", folder / "_markers/00000.json", images[0]):
        path.unlink()  # as if it was killed
    shutil.rmtree(folder / "manifest")
    generate(settings(place, f"by-actors-{name}", actors=1, **fields))
    assert contents(folder) == before


def test_the_plan_is_a_function_of_the_index() -> None:
    plan = DatasetPlan((7, 3), (5,), shard_size=2)
    assert [plan.ids(shard).tolist() for shard in plan.work.numbers] == [[0, 1], [2, 3], [4]]
    assert plan.labels(np.arange(5)).tolist() == [7, 3, 7, 3, 7]
    assert (plan.num_images, plan.name(2)) == (5, "data/train-00002-of-00003")
    longer = DatasetPlan((7, 3), (50,), shard_size=2)
    assert np.array_equal(longer.labels(np.arange(5)), plan.labels(np.arange(5)))


@pytest.mark.parametrize(
    ("count", "tag"),
    [(1, "n<1K"), (1000, "1K<n<10K"), (50_000, "10K<n<100K"), (10**9, "n>1B")],
)
def test_the_hubs_size_tags(count: int, tag: str) -> None:
    assert size_category(count) == tag
