"""Datasets in every format, opened by the tools people have. Without Ray."""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_dit.cli.options import parse
from ray_dit.config import GenerateConfig
from ray_dit.core.media import decode
from ray_dit.errors import Conflict, UserError
from ray_dit.folders.dataset import read_shard
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.labels import Labels
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import repair, verify
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.results import RESULTS, DatasetResult, ImageShardFacts
from ray_dit.runtime.shard_maker import make_shard
from ray_dit.stages import generate as stage
from ray_dit.stages.fingerprint import parts
from ray_dit.stages.painter import Build, Painter
from ray_dit.storage.open import open_store
from tests.support.made_datasets import dataset_config, make_dataset
from tests.support.tiny import SIZE, contents, flip_bit, write_model

NAMES = ("left", "middle", "right")
COUNT = 11
FORMATS = ("parquet", "webdataset", "folder", "npz")
VARYING = {"guidance_scales": (1.0, 1.5, 4.0)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "model", NAMES)
    return folder / "model"


@pytest.fixture(scope="module", params=FORMATS)
def dataset(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("datasets") / request.param
    make_dataset(dataset_config(model, output, num_images=COUNT, format=request.param, **VARYING))
    return output


@pytest.fixture(scope="module")
def every(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain dataset in each format."""
    root = tmp_path_factory.mktemp("plain")
    for name in FORMATS:
        make_dataset(dataset_config(model, root / name, num_images=COUNT, format=name))
    return {name: root / name for name in FORMATS}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``datasets.load_dataset`` of the training split, for which a warning is an error."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: (
        said.append(record.getMessage()) if record.levelno >= logging.WARNING else None
    )  # type: ignore[method-assign]
    logger = logging.getLogger("datasets")
    logger.addHandler(handler)

    def opened(folder: Path, **fields: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ResourceWarning)  # of files that datasets leaves open
            return datasets.load_dataset(
                str(folder), split="train", cache_dir=str(tmp_path / "cache"), **fields
            )

    yield opened
    logger.removeHandler(handler)
    assert said == []


def shards(folder: Path) -> list[ImageShard]:
    store, manifest = open_store(str(folder)), read_manifest(str(folder), DatasetResult)
    return [
        read_shard(store, marker.key, marker.sha256)
        for marker in manifest_objects(store, manifest, ImageShardFacts)
    ]


def images(folder: Path) -> dict[int, np.ndarray]:
    return {
        int(number): decode(data)
        for each in shards(folder)
        for number, data in zip(each.ids, each.images, strict=True)
    }


def test_all_formats_hold_the_same_pixels_and_labels(every: dict[str, Path]) -> None:
    first = images(every["parquet"])
    assert sorted(first) == list(range(COUNT))
    manifests = {name: read_manifest(str(folder), DatasetResult).facts for name, folder in every.items()}
    assert len({facts.pixels_sha256 for facts in manifests.values()}) == 1
    assert {name: facts.stored_as for name, facts in manifests.items()} == {name: name for name in FORMATS}
    for folder in every.values():
        found = images(folder)
        assert all(np.array_equal(found[number], first[number]) for number in range(COUNT))
        labels = [int(label) for each in shards(folder) for label in each.labels]
        assert labels == [number % 3 for number in range(COUNT)]
        assert {each.classes for each in shards(folder)} == {NAMES}


def test_a_dataset_is_whole_and_made_twice_the_same(dataset: Path, model: Path, tmp_path: Path) -> None:
    assert list(verify(open_store(str(dataset)), results=RESULTS)) == []
    again = tmp_path / "again"
    make_dataset(dataset_config(model, again, num_images=COUNT, format=dataset.name, **VARYING))
    assert contents(again) == contents(dataset)


def test_any_damaged_object_is_found_and_repaired(dataset: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(dataset, folder)
    before, store = contents(folder), open_store(str(folder))
    config = dataset_config(model, folder, num_images=COUNT, format=dataset.name, **VARYING)
    settled = stage.settle(config)
    job = stage._open(config, settled)
    painter, plain = Painter(config, settled.plan), stage._at_the_end(config, settled, job, settled.plan)
    own = [key for key in before if not key.startswith(("_", "manifest"))]
    assert len(own) >= 4

    def rebuild(_: object, marker: Any) -> dict[str, bytes]:
        made = make_shard(painter, marker.facts.to_json()["shard"])
        return {made.key: made.data, **made.files}

    for key in own:
        flip_bit(folder / key)
        assert [problem.key for problem in verify(store)] == [key]
        list(repair(store, rebuild, plain))
        assert contents(folder) == before
    for key in own:
        (folder / key).unlink()
    list(repair(store, rebuild, plain))
    assert contents(folder) == before, "all of it at once, what is made of shards after these"


def test_datasets_loads_images_classes_and_settings(every: dict[str, Path], load: Any) -> None:
    import datasets

    for name in ("parquet", "folder"):
        opened = load(every[name])
        assert opened.features == {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(NAMES)),
            "id": datasets.Value("int64"),
        }
        assert opened["id"][:] == list(range(COUNT))
        assert opened["label"][:] == [number % 3 for number in range(COUNT)]
        assert opened[4]["image"].size == (SIZE, SIZE)
    opened = load(every["webdataset"])
    assert opened.features["cls"] == datasets.ClassLabel(names=list(NAMES))
    assert opened["cls"][:] == [number % 3 for number in range(COUNT)]
    assert opened[4]["png"].size == (SIZE, SIZE)


@pytest.mark.parametrize("name", ["parquet", "folder", "webdataset"])
def test_datasets_streams_it(every: dict[str, Path], load: Any, name: str) -> None:
    rows = list(load(every[name], streaming=True))
    label, image = ("cls", "png") if name == "webdataset" else ("label", "image")
    assert [row[label] for row in rows] == [number % 3 for number in range(COUNT)]
    expected = images(every["parquet"])
    assert all(np.array_equal(np.asarray(row[image]), expected[at]) for at, row in enumerate(rows))


def test_settings_that_vary_are_columns(dataset: Path, load: Any) -> None:
    scales = [scale for each in shards(dataset) for scale in each.columns["guidance_scale"]]
    assert {*scales} == {*VARYING["guidance_scales"]}
    if dataset.name == "npz":
        with np.load(next(dataset.glob("samples_*.npz"))) as arrays:
            assert arrays["guidance_scale"].tolist() == scales
        return
    opened = load(dataset)
    column = opened["json"][:] if dataset.name == "webdataset" else opened["guidance_scale"][:]
    assert [each["guidance_scale"] if isinstance(each, dict) else each for each in column] == scales


def test_webdataset_reads_the_tars_by_their_index(every: dict[str, Path]) -> None:
    import webdataset

    folder = every["webdataset"] / "data"
    index = json.loads((folder / "index.json").read_text())
    listed = index["shardlist"]
    assert [shard["nsamples"] for shard in listed] == [4, 4, 3]
    assert [shard["filesize"] for shard in listed] == [
        (folder / shard["url"]).stat().st_size for shard in listed
    ]
    urls = [str(folder / shard["url"]) for shard in listed]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    expected = images(every["parquet"])
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(COUNT)]
    assert [sample["cls"] for sample in samples] == [number % 3 for number in range(COUNT)]
    assert all(np.array_equal(sample["png"], expected[at]) for at, sample in enumerate(samples))


def test_numpy_reads_the_archive_as_guided_diffusions_evaluator_does(every: dict[str, Path]) -> None:
    (path,) = every["npz"].glob("samples_*.npz")
    assert path.name == f"samples_{COUNT}x{SIZE}x{SIZE}x3.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert (arrays["arr_0"].dtype, arrays["arr_1"].dtype) == (np.uint8, np.int64)
        expected = images(every["parquet"])
        assert np.array_equal(arrays["arr_0"], np.stack([expected[number] for number in range(COUNT)]))
        assert arrays["arr_1"].tolist() == [number % 3 for number in range(COUNT)]


def test_an_archive_of_all_images_may_be_larger_than_memory(
    every: dict[str, Path], monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    from ray_dit.formats.registry import FORMATS as REGISTRY

    monkeypatch.setattr(
        f"{type(REGISTRY['npz']).__module__}.KEPT_BYTES", 100
    )  # then it is mapped from a file
    make_dataset(dataset_config(model, tmp_path / "npz", num_images=COUNT, format="npz"))
    assert contents(tmp_path / "npz") == contents(every["npz"])


def test_pandas_duckdb_and_polars_read_the_parquet_files(every: dict[str, Path]) -> None:
    import duckdb
    import pandas
    import polars

    pattern = f"{every['parquet']}/data/*.parquet"
    labels = [number % 3 for number in range(COUNT)]
    frame = pandas.concat(map(pandas.read_parquet, sorted((every["parquet"] / "data").glob("*.parquet"))))
    assert (frame["id"].tolist(), frame["label"].tolist()) == (list(range(COUNT)), labels)
    assert decode(frame["image"].iloc[0]["bytes"]).shape == (SIZE, SIZE, 3)
    counted = duckdb.sql(f"select label, count(*) from '{pattern}' group by label order by label").fetchall()
    assert counted == [(0, 4), (1, 4), (2, 3)]
    scanned = polars.scan_parquet(pattern).filter(polars.col("label") == 1).select("id").collect()
    assert scanned["id"].to_list() == [1, 4, 7, 10]


def test_torchvisions_folder_layout(every: dict[str, Path]) -> None:
    """A folder for each class in ``train`` and nothing else that is one."""
    folders = sorted(path.name for path in (every["folder"] / "train").iterdir() if path.is_dir())
    assert folders == sorted(NAMES)
    assert (every["folder"] / "train/middle/000000004.png").is_file()
    table = pq.read_table(every["folder"] / "train/metadata.parquet").to_pylist()
    assert table[4] == {"file_name": "middle/000000004.png", "label": 1, "id": 4}


def test_row_groups_are_small_and_have_statistics(model: Path, tmp_path: Path) -> None:
    config = dataset_config(model, tmp_path / "d", num_images=250, shard_size=250, batch_size=50)
    make_dataset(config)
    file = pq.ParquetFile(tmp_path / "d/data/train-00000-of-00001.parquet")
    assert [file.metadata.row_group(group).num_rows for group in range(3)] == [100, 100, 50]
    columns = {
        column.path_in_schema: column
        for column in (file.metadata.row_group(1).column(at) for at in range(file.metadata.num_columns))
    }
    statistics = columns["id"].statistics
    assert (statistics.min, statistics.max) == (100, 199)
    assert columns["label"].is_stats_set
    assert not columns["image.bytes"].is_stats_set
    assert all(columns[name].has_offset_index for name in columns)
    assert columns["id"].has_column_index


@pytest.mark.parametrize(("image_format", "magic"), [("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_jpeg_and_webp(model: Path, tmp_path: Path, load: Any, image_format: Any, magic: bytes) -> None:
    for number, name in enumerate(("parquet", "webdataset", "folder")):
        config = dataset_config(
            model, tmp_path / name, num_images=3, format=name, image_format=image_format, quality=80
        )
        make_dataset(config)
        (shard,) = shards(tmp_path / name)
        assert all(data.startswith(magic) for data in shard.images)
        assert len(load(tmp_path / name)) == 3, number


def test_quality_and_level_decide_bytes(model: Path, tmp_path: Path) -> None:
    def size(name: str, **fields: Any) -> int:
        make_dataset(dataset_config(model, tmp_path / name, num_images=3, **fields))
        return sum(map(len, shards(tmp_path / name)[0].images))

    assert size("q10", image_format="jpeg", quality=10) < size("q95", image_format="jpeg", quality=95)
    assert size("l0", png_level=0) > size("l9", png_level=9)
    assert size("l6", png_level=6) == size("default")


def test_a_thousand_names_of_imagenet(tmp_path: Path, load: Any) -> None:
    """Two classes are called crane; a model without ids of its classes has ImageNet's names."""
    import datasets

    labels = Labels.imagenet()
    write_model(tmp_path / "model", labels.names)
    for name in ("parquet", "webdataset", "folder"):
        config = dataset_config(
            tmp_path / "model", tmp_path / name, num_images=3, classes=("134", "517", "0"), format=name
        )
        manifest = make_dataset(config)
        assert manifest.facts.wordnet_ids == labels.wordnet_ids
        opened = load(tmp_path / name)
        column = "cls" if name == "webdataset" else "label"
        assert opened.features[column] == datasets.ClassLabel(names=list(labels.unique_names))
        assert opened.features[column].int2str([134, 517]) == ["crane (n02012849)", "crane (n03126707)"]
        assert opened[column][:] == [134, 517, 0]
    folders = {path.name for path in (tmp_path / "folder/train").iterdir() if path.is_dir()}
    assert folders == {"n02012849", "n03126707", "n01440764"}


@pytest.mark.parametrize("name", FORMATS)
def test_images_without_classes_have_no_labels(tmp_path: Path, load: Any, name: str) -> None:
    write_model(tmp_path / "model", ())
    make_dataset(dataset_config(tmp_path / "model", tmp_path / "d", num_images=5, format=name))
    assert {each.classes for each in shards(tmp_path / "d")} == {()}
    if name == "npz":
        with np.load(next((tmp_path / "d").glob("samples_*.npz"))) as arrays:
            assert "arr_1" not in arrays
        return
    opened = load(tmp_path / "d")
    assert not {"label", "cls"} & {*opened.features}
    assert len(opened) == 5


def test_a_class_whose_name_is_no_folder_lies_in_its_number(tmp_path: Path) -> None:
    names = ("../up", "a/b", "CON?", "x" * 300, "Cat", "cat", "fine, really")
    write_model(tmp_path / "model", names)
    make_dataset(dataset_config(tmp_path / "model", tmp_path / "d", num_images=7, format="folder"))
    folders = sorted(path.name for path in (tmp_path / "d/train").iterdir() if path.is_dir())
    assert len(folders) == 7
    assert "fine, really" in folders
    assert not any(set(folder) & set('/\\:*?"<>|') or folder.startswith(".") for folder in folders)
    assert {each.classes for each in shards(tmp_path / "d")} == {names}


@pytest.mark.parametrize("name", FORMATS)
def test_an_extension_has_the_images_of_a_dataset_made_in_one_go(
    model: Path, tmp_path: Path, load: Any, name: str
) -> None:
    make_dataset(dataset_config(model, tmp_path / "d", num_images=5, format=name))
    before = contents(tmp_path / "d")
    make_dataset(dataset_config(model, tmp_path / "d", num_images=COUNT, format=name, extend=True))
    make_dataset(dataset_config(model, tmp_path / "whole", num_images=COUNT, format=name))
    ours, theirs = images(tmp_path / "d"), images(tmp_path / "whole")
    assert all(np.array_equal(ours[number], theirs[number]) for number in range(COUNT))
    assert list(verify(open_store(str(tmp_path / "d")), results=RESULTS)) == []
    replaced = {key for key, value in contents(tmp_path / "d").items() if before.get(key, value) != value}
    assert replaced <= {"README.md", "data/index.json", "train/metadata.parquet"}
    if name != "npz":
        assert len(load(tmp_path / "d")) == COUNT


FIRST_WITHOUT = ("labels", "guidance_scales", "format", "image_format", "png_level", "quality")
"""Settings that the first version did not have."""


def begun(config: GenerateConfig, rules: int | None, without: tuple[str, ...] = ()) -> None:
    """A folder as a version with these rules began it, which did not have the settings ``without``."""
    settled = stage.settle(config)
    resolved = {"sampler": settled.sampler, "classes": list(settled.plan.classes), "num_images": 6}
    then = parts(config, "generate", dict(settled.inputs), resolved=resolved, rules=rules)
    for name in without:
        del then["config"][name]
    Job.open(open_store(config.output), "generate", then)


def test_what_the_first_version_began_goes_on_in_its_layout(model: Path, tmp_path: Path, load: Any) -> None:
    folder = tmp_path / "d"
    config = dataset_config(model, folder, num_images=6)
    begun(config, 1, FIRST_WITHOUT)
    job = (folder / "_job.json").read_bytes()
    facts = make_dataset(config).facts.to_json()
    assert not facts.keys() & {"stored_as", "label_rule", "sampler_tables_sha256"}
    assert (folder / "_job.json").read_bytes() == job
    assert "num_examples: 6" in (folder / "README.md").read_text()
    more = dataset_config(model, folder, num_images=COUNT, extend=True)
    assert make_dataset(more).facts.rows == COUNT
    for path in (folder / "data").iterdir():
        column = pq.ParquetFile(path).metadata.row_group(0).column(3)
        assert (column.path_in_schema, column.is_stats_set) == ("id", False)
    assert list(verify(open_store(str(folder)), results=RESULTS)) == []
    make_dataset(dataset_config(model, tmp_path / "new", num_images=COUNT))
    ours, theirs = images(folder), images(tmp_path / "new")
    assert all(np.array_equal(ours[number], theirs[number]) for number in range(COUNT))
    with pytest.raises(Conflict, match="config.format: parquet -> folder"):
        make_dataset(dataset_config(model, folder, num_images=COUNT, format="folder"))


@pytest.mark.parametrize(("rules", "compiled"), [(2, False), (None, True)])
def test_a_compiled_dataset_of_the_second_rules_has_its_images_decoded_as_then(
    model: Path, tmp_path: Path, rules: int | None, compiled: bool
) -> None:
    config = dataset_config(model, tmp_path / "d", num_images=6, compile=True)
    begun(config, rules)
    painter = Build(config, stage.settle(config).plan)()
    assert isinstance(painter, Painter)
    assert painter._pipeline.compile
    assert painter._pipeline.compile_vae == compiled


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"shard_size": 10**7, "num_images": 10**7},
            "may take .* GB, and 2.1 GB is what readers take: give --shard-size",
        ),
        ({"format": "folder", "num_images": 10**8}, "take --format parquet or webdataset"),
    ],
)  # fmt: skip
def test_what_readers_could_not_take_is_refused_before_any_work(
    model: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    config = dataset_config(model, tmp_path / "d", **fields)
    with pytest.raises(UserError, match=message):
        stage.generate(config)
    assert not (tmp_path / "d").exists()


def test_the_shard_size_that_is_said_to_fit_fits(model: Path, tmp_path: Path) -> None:
    config = dataset_config(model, tmp_path / "d", shard_size=10**7, num_images=10**7)
    settled = stage.settle(config)
    with pytest.raises(UserError) as refused:
        stage._check_sizes(config, settled)
    fits = int(str(refused.value).split("--shard-size ")[1].split()[0])
    smaller = config.model_copy(update={"shard_size": fits})
    stage._check_sizes(smaller, stage.settle(smaller))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "npz", "image_format": "jpeg"}, "npz holds plain pixels"),
        ({"quality": 50}, "png loses nothing"),
        ({"image_format": "webp", "png_level": 1}, "png_level belongs to png"),
        ({"labels": "random", "num_images": None, "per_class": 2}, "per_class fixes"),
        ({"guidance_scales": (1.0,), "sampler": {"guidance_scale": 2.0}}, "give either guidance_scales or"),
        ({"requests": "r.csv"}, "give one of num_images, per_class and requests"),
        ({"requests": "r.csv", "num_images": None, "classes": ("a",)}, "leave classes, labels and"),
        ({"only_output": "x"}, "only_output belongs to only"),
        ({"only": (1,)}, "only needs only_output"),
        ({"only": (1,), "only_output": "x", "repair": True}, "leave extend, repair and preview out"),
    ],
)
def test_settings_that_do_not_fit_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateConfig(model="m", output="o", **({"num_images": 4} | fields))


@pytest.mark.parametrize(
    "words", [["1.0,1.5,4.0"], ["1.0", "1.5", "4.0"], ["1.0,1.5", "4.0"], ["1,", "1.5,", "4"]]
)
def test_lists_of_numbers_may_have_commas(words: list[str]) -> None:
    given = ["--model", "m", "--output", "o", "--num-images", "1", "--guidance-scales", *words]
    assert parse("generate", GenerateConfig, given, []).guidance_scales == (1.0, 1.5, 4.0)
    with pytest.raises(UserError, match="--guidance-scales: 'x' is not a number"):
        parse("generate", GenerateConfig, [*given, "x"], [])
