"""What each image is: classes in turn or drawn, scales drawn, and lists of requests. Without Ray."""

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_dit
from ray_dit.config import SamplerConfig
from ray_dit.core.media import decode
from ray_dit.errors import Conflict, UserError
from ray_dit.ledger.manifest import read_manifest
from ray_dit.ledger.markers import mark
from ray_dit.ledger.stored_json import canonical
from ray_dit.results import DatasetResult, ImageShardFacts
from ray_dit.runtime.shard_maker import shard_name
from ray_dit.stages import generate as stage
from ray_dit.stages.dataset_plan import DatasetPlan
from tests.stages.test_dataset_formats import shards
from tests.support.made_datasets import dataset_config, make_dataset
from tests.support.tiny import contents, write_model

NAMES = ("left", "middle", "right")
ROWS: list[dict[str, Any]] = [
    {"label": "right", "seed": 7},
    {"label": 0, "guidance_scale": 1.0, "num_inference_steps": 2},
    {"label": "middle", "sampler": "ddim", "num_inference_steps": 4},
    {"label": "right", "seed": 7},
    {"label": "left"},
    {"label": "right", "guidance_scale": 4.0, "sampler": "ddpm", "seed": 3},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "model", NAMES)
    return folder / "model"


def test_random_labels_are_a_function_of_seed_and_number() -> None:
    plan = DatasetPlan((2, 0, 1), (10_000,), 1000, seed=3, is_random=True)
    labels = plan.labels(np.arange(10_000))
    assert np.array_equal(plan.labels(np.arange(5000, 5010)), labels[5000:5010])
    counts = np.bincount(labels, minlength=3)
    assert abs(counts - 10_000 / 3).max() < 200  # four standard deviations are 190
    assert counts.max() > counts.min(), "balanced to the last image is not random"
    other = DatasetPlan((2, 0, 1), (10_000,), 1000, seed=4, is_random=True)
    assert not np.array_equal(other.labels(np.arange(100)), labels[:100])
    longer = DatasetPlan((2, 0, 1), (10_000, 20_000), 1000, generation=1, seed=3, is_random=True)
    assert np.array_equal(longer.labels(np.arange(10_000)), labels)


def test_scales_are_drawn_independently_of_labels() -> None:
    scales = (1.0, 1.5, 4.0)
    plan = DatasetPlan((0, 1, 2), (9000,), 1000, seed=3, scales=scales, is_random=True)
    drawn = plan.images(np.arange(9000))
    table = np.array(
        [
            [np.sum((drawn.labels == label) & (drawn.scales == scale)) for scale in scales]
            for label in range(3)
        ]
    )
    assert abs(table - 1000).max() < 130  # four standard deviations are 119
    assert plan.settings(np.arange(3)).keys() == {"guidance_scale"}
    same = DatasetPlan((0, 1, 2), (9,), 3, scales=(2.0, 2.0))
    assert same.settings(np.arange(9)) == {}
    assert same.images(np.arange(9)).scales.tolist() == [2.0] * 9


def test_the_canonical_batch_of_an_image_is_the_one_its_shard_is_made_in() -> None:
    plan = DatasetPlan((0,), (5, 6, 14, 23), 4, generation=3)
    for shard in plan.numbers:
        for batch in plan.batches(shard, 3):
            for number in np.intersect1d(batch, plan.ids(shard)):
                assert plan.batch_of(int(number), 3).tolist() == batch.tolist()


def requests(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("totals", [(11,), (11, 12, 13, 25), (4, 9), (8, 16)])
def test_sizes_and_batches_are_counted_as_they_are_listed(totals: tuple[int, ...]) -> None:
    for generation in range(len(totals)):
        plan = DatasetPlan((0, 1), totals, 4, generation)
        assert plan.work.numbers == plan.own_numbers
        assert plan.work.sizes == [len(plan.ids(shard)) for shard in plan.own_numbers]
        assert sum(plan.work.sizes) == totals[generation] - (0, *totals)[generation]
        for shard in plan.own_numbers:
            assert plan.num_batches(shard, 3) == len(plan.batches(shard, 3))


def test_planning_lists_no_images() -> None:
    many = 10**15
    plan = DatasetPlan((0,), (2 * many,), many)
    assert plan.work.sizes == [many, many]
    assert plan.num_batches(1, 50) == many // 50


def test_a_dataset_is_finished_without_holding_its_markers(tmp_path: Path) -> None:
    write_model(tmp_path / "model", tuple(f"class {number}" for number in range(1000)))
    config = dataset_config(tmp_path / "model", tmp_path / "dataset", num_images=400_000, shard_size=1000)
    settled = stage.settle(config)
    job = stage._open(config, settled)
    classes = dict.fromkeys(map(str, range(1000)), 1)
    for shard in settled.plan.work.numbers:
        facts = ImageShardFacts(
            shard=shard, rows=1000, pixels_sha256=str(shard), first_id=1000 * shard, classes=classes
        )
        data = canonical(mark(shard_name(shard), f"{shard}.parquet", b"", facts).to_json())
        job.store.put(f"_markers/{shard_name(shard)}.json", data)
    tracemalloc.start()
    try:
        manifest = stage._finish(config, job, settled)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert manifest.listings[0].count == 400
    assert manifest.facts.pixels_sha256 == hashlib.sha256("".join(map(str, range(400))).encode()).hexdigest()
    assert peak < 28e6  # all of them take 50 MB and more


def test_every_request_is_the_image_the_pipeline_makes_of_it(model: Path, tmp_path: Path) -> None:
    config = dataset_config(model, tmp_path / "d", requests=requests(tmp_path / "r.jsonl"), batch_size=4)
    manifest = make_dataset(config)
    assert (manifest.facts.rows, manifest.facts.label_rule, manifest.facts.labels) == (
        6,
        "requests",
        (0, 1, 2),
    )
    found = shards(tmp_path / "d")
    labels = [int(label) for shard in found for label in shard.labels]
    assert labels == [2, 0, 1, 2, 0, 2]
    columns = {name: [value for shard in found for value in shard.columns[name]] for name in found[0].columns}
    assert columns == {
        "seed": [7, 5, 5, 7, 5, 3],
        "guidance_scale": [2.0, 1.0, 2.0, 2.0, 2.0, 4.0],
        "num_inference_steps": [3, 2, 4, 3, 3, 3],
        "sampler": ["unipc", "unipc", "ddim", "unipc", "unipc", "ddpm"],
    }
    pixels = [decode(data).astype(int) for shard in found for data in shard.images]
    pipe = ray_dit.load(str(model), device="cpu")
    for number, image in enumerate(pixels):
        sampler = pipe.sampler(
            SamplerConfig(name=columns["sampler"][number]).over(pipe.config.sampler),  # type: ignore[arg-type]
            steps=columns["num_inference_steps"][number],
            guidance_scale=columns["guidance_scale"][number],
        )
        own = "seed" in ROWS[number]
        latents = pipe.sample_latents(
            [labels[number]], sample_ids=[0 if own else number], seed=columns["seed"][number], sampler=sampler
        )
        alone = pipe.decode(latents)[0].astype(int)
        assert abs(alone - image).max() <= 1, "alone and in a batch: the same to the last bits"
    # the same request twice, in other batches and at other places in them
    assert abs(pixels[0] - pixels[3]).max() <= 1


def test_rows_of_other_settings_do_not_change_an_image(model: Path, tmp_path: Path) -> None:
    make_dataset(dataset_config(model, tmp_path / "mixed", requests=requests(tmp_path / "a.jsonl")))
    others = [row if number == 4 else {"label": "left"} for number, row in enumerate(ROWS)]
    make_dataset(dataset_config(model, tmp_path / "plain", requests=requests(tmp_path / "b.jsonl", others)))
    mixed, plain = (
        [decode(data).astype(int) for shard in shards(tmp_path / name) for data in shard.images]
        for name in ("mixed", "plain")
    )
    assert abs(mixed[4] - plain[4]).max() <= 1


def test_the_list_decides_and_its_place_does_not(model: Path, tmp_path: Path) -> None:
    make_dataset(dataset_config(model, tmp_path / "d", requests=requests(tmp_path / "a.jsonl")))
    before = contents(tmp_path / "d")
    moved = dataset_config(model, tmp_path / "d", requests=requests(tmp_path / "b.jsonl"))
    assert stage._open(moved, stage.settle(moved)).is_finished()
    other = dataset_config(model, tmp_path / "d", requests=requests(tmp_path / "c.jsonl", ROWS[::-1]))
    with pytest.raises(Conflict, match="inputs.requests"):
        stage._open(other, stage.settle(other))
    assert contents(tmp_path / "d") == before


def test_a_model_that_cannot_be_guided_refuses_scales(tmp_path: Path) -> None:
    write_model(tmp_path / "model", NAMES, dropout=0.0)
    fields: list[dict[str, Any]] = [
        {"num_images": 3, "guidance_scales": (1.0, 2.0)},
        {"requests": requests(tmp_path / "r.jsonl")},
    ]
    for given in fields:
        with pytest.raises(UserError, match="can't be guided: leave .*guidance.scale.* out, or at 1"):
            stage.settle(dataset_config(tmp_path / "model", tmp_path / "d", **given))


def test_the_card_and_the_manifest_say_how_labels_came_about(model: Path, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "labels are\nbalanced": {"num_images": 4},
        "labels are\ndrawn at random by seed 5": {"num_images": 4, "labels": "random"},
        "labels are\nthose of a list of requests": {"requests": requests(tmp_path / "r.jsonl")},
        "guidance drawn from 1, 4; labels are\nbalanced": {"num_images": 4, "guidance_scales": (1.0, 4.0)},
    }
    rules: list[str] = []
    for number, (said, fields) in enumerate(kinds.items()):
        make_dataset(dataset_config(model, tmp_path / str(number), **fields))
        assert said in (tmp_path / str(number) / "README.md").read_text()
        facts = read_manifest(str(tmp_path / str(number)), DatasetResult).facts
        rules.append(facts.label_rule)
        assert facts.guidance_scales == fields.get("guidance_scales", ())
        assert len(facts.sampler_tables_sha256) == (4 if "requests" in fields else 1)
    assert rules == ["balanced", "random", "requests", "balanced"]


def test_counts_are_exactly_as_asked(model: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"num_images": 7}, [3, 2, 2]),
        ({"per_class": 2}, [2, 2, 2]),
        ({"per_class": 3, "classes": ("right", "left")}, [3, 0, 3]),
        ({"num_images": 5, "classes": ("middle",)}, [0, 5, 0]),
    ]
    for number, (fields, expected) in enumerate(cases):
        make_dataset(dataset_config(model, tmp_path / str(number), **fields))
        labels = np.concatenate([shard.labels for shard in shards(tmp_path / str(number))])
        assert np.bincount(labels, minlength=3).tolist() == expected
