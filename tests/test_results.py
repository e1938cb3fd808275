"""What stages leave is read as it was written.

That holds for every byte of folders of before, and for what another version added.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_dit.config import SamplerConfig
from ray_dit.errors import UserError
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.ledger.results import Facts, parse_manifest, parse_marker
from ray_dit.ledger.stored_json import canonical, json_line
from ray_dit.results import (
    DatasetResult,
    EvaluationResult,
    ImageShardFacts,
    LatentShardFacts,
    LatentsResult,
    UsedSampler,
)
from ray_dit.storage.open import open_store
from tests.support.results import dataset_result, image_facts, training_result, vae_result

FOLDERS = Path(__file__).parent / "golden/folders"
SHARDS = {"encode": LatentShardFacts, "generate": ImageShardFacts}


def stored(path: str) -> dict[str, Any]:
    return json.loads((FOLDERS / path).read_bytes())


@pytest.mark.parametrize("stage", SHARDS)
def test_markers_of_before_are_written_as_they_were(stage: str) -> None:
    paths = sorted((FOLDERS / stage / "_markers").iterdir())
    assert paths
    for path in paths:
        marker = parse_marker(json.loads(path.read_bytes()), SHARDS[stage], str(path))
        assert canonical(marker.to_json()) == path.read_bytes()
        assert marker.facts.shard == int(path.stem)


def test_a_finished_folder_of_before_is_read() -> None:
    store = open_store(str(FOLDERS / "encode"))
    manifest = read_manifest(store, LatentsResult)
    assert manifest.sha256 == store.sha256("manifest.json")
    assert (manifest.facts.rows, manifest.facts.classes) == (12, ("cat", "dog"))
    lines = [json_line(marker.to_json()) for marker in manifest_objects(store, manifest, LatentShardFacts)]
    assert b"".join(lines) == store.get("manifest/objects.jsonl")
    assert manifest.listings[0].sha256 == store.sha256("manifest/objects.jsonl")


def test_a_manifest_has_the_hash_of_what_is_stored_however_it_is_understood() -> None:
    whole = stored("encode/manifest.json") | {"scaling_factor": 1}  # 1.0 once it is read
    assert parse_manifest(whole, LatentsResult, "").sha256 == parse_manifest(whole, Facts, "").sha256


def test_what_a_newer_version_added_is_kept() -> None:
    newer = stored("generate/_markers/00000.json") | {"seconds_of_video": [0.5, 2]}
    assert parse_marker(newer, ImageShardFacts, "").to_json() == newer


def test_a_fact_that_is_missing_is_named_with_its_place() -> None:
    broken = stored("generate/_markers/00000.json")
    del broken["pixels_sha256"]
    with pytest.raises(
        UserError, match=r"^out/x.json can't be read \(pixels_sha256: Field required\): .*delete"
    ):
        parse_marker(broken, ImageShardFacts, "out/x.json")


def test_what_is_not_set_is_not_written_and_what_is_none_is() -> None:
    older = dataset_result().to_json()
    del older["image_size"]
    assert DatasetResult.model_validate(older).to_json() == older
    assert DatasetResult.model_validate(older | {"image_size": None}).to_json() == older | {
        "image_size": None
    }


def test_every_setting_of_the_sampler_is_written() -> None:
    config = SamplerConfig(guidance_scale=4, guidance_interval=(10, 900))
    written = dataset_result(sampler=UsedSampler.of(config)).to_json()["sampler"]
    assert json.dumps(written) == json.dumps(config.model_dump(mode="json"))


def test_figures_keep_their_kind() -> None:
    """Whole numbers stay whole, and a class without images stays none: these bytes are a metrics.json."""
    values = {"accuracy": 1.0, "images": 24, "per_class": {"cat": 0.5, "dog": None}}
    counts = {"num_images": 1, "num_train": 2, "num_heldout": 3}
    result = EvaluationResult.model_validate(values | counts)
    assert result.figures == values
    assert canonical(result.to_json()) == canonical(values | counts)


def test_what_the_numbers_of_a_manifest_must_be() -> None:
    """Each stage's rule, on facts as its objects have them."""
    parts = {"config": {"steps": 20, "batch_size": 8}}
    assert vae_result().expected(parts, []) == {"steps": 20}
    assert training_result().expected(parts, []) == {"steps": 20, "samples": 160}
    assert training_result().expected({"made": "by a test"}, []) == {}
    images = [image_facts(number, rows).to_json() for number, rows in enumerate((3, 2))]
    assert dataset_result().expected({}, images)["rows"] == 5
    pieces = [
        {"shard": number, "of": of, "seen": 9, "rows": rows, "bad": []}
        for number, (of, rows) in enumerate([("train", 3), ("train", 4), ("heldout", 2), ("generated", 5)])
    ]
    classifier = {"classifier": "judge", "images": 7}
    evaluation = EvaluationResult(num_images=0, num_train=0, num_heldout=0)
    counts = {"num_images": 5, "num_train": 7, "num_heldout": 2}
    assert evaluation.expected({}, [classifier, *pieces]) == counts
