"""Folders that other versions began: which go on, which are refused, and what is said. Without Ray."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_dit import config
from ray_dit.errors import Conflict
from ray_dit.ledger.description import fingerprint_of
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import Tally, verify
from ray_dit.ledger.results import Facts
from ray_dit.ledger.stored_json import canonical
from ray_dit.results import LatentsResult
from ray_dit.stages.fingerprint import ROWS_SINCE, STAGE_RULES, comparison, open_job, parts, rules_with_plan
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

FOLDERS = Path(__file__).parents[1] / "golden/folders"
"""What stages of commit ac66511 left; make.py beside them says how."""


class LaterTrainConfig(config.TrainConfig):
    """As it would be with one setting more."""

    horizontal_shift: config.Content[int] = 0


class EarlierTrainConfig(config.TrainConfig):
    """As it was when the number of workers was thought to decide all bytes."""

    num_workers: config.Content[int] = 1  # type: ignore[assignment]


def encode_config(**fields: Any) -> config.EncodeConfig:
    known = {"images": {"uri": "images", "size": 16, "heldout": 0.2}, "vae": "vae", "output": "out"}
    return config.EncodeConfig(**known | {"shard_size": 5, "mirror": False} | fields)


def train_config(kind: type[config.TrainConfig] = config.TrainConfig, **fields: Any) -> config.TrainConfig:
    known = {"latents": "latents", "output": "out", "model": {"hidden_size": 16, "depth": 1, "num_heads": 2}}
    known |= {
        "optimizer": {"learning_rate": 0.004, "betas": (0.9, 0.95)},
        "sampler": {"num_inference_steps": 3},
    }
    known |= {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "log_every": 2, "num_workers": 2}
    return kind(**known | fields)


def generate_config(**fields: Any) -> config.GenerateConfig:
    known = {"model": "model", "output": "out", "per_class": 3, "classes": ("dog", "cat")}
    return config.GenerateConfig(**known | {"shard_size": 2, "batch_size": 2} | fields)


def train_resolved(asked: config.TrainConfig) -> dict[str, Any]:
    """What train makes of its settings, for latents of that day."""
    shape = asked.model.resolve(input_size=8, in_channels=4, num_classes=2)
    size = shape.model_dump(mode="json", include=set(config.DiTSizeConfig.model_fields))
    return {"model": size, "diffusion": asked.diffusion.over(config.DiffusionConfig())}


def generate_resolved(asked: config.GenerateConfig) -> dict[str, Any]:
    """What generate makes of its settings, for the model of that day."""
    sampler = asked.sampler.over(config.SamplerConfig(num_inference_steps=3))
    return {"sampler": sampler, "classes": [1, 0], "num_images": 6}


RESOLVED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "encode": lambda asked: {},
    "train": train_resolved,
    "generate": generate_resolved,
}


def stored(name: str, place: Path) -> Store:
    """A copy of a stored folder."""
    shutil.copytree(FOLDERS / name, place / name)
    return open_store(str(place / name))


def open_as_today(store: Store, asked: config.StageConfig, accept_fingerprint: bool = False) -> Job:
    """The stage's job in the folder, inputs and libraries being those of that day."""
    there = json.loads(store.get("_job.json"))
    stage, resolved = there["stage"], RESOLVED[there["stage"]](asked)
    rules = rules_with_plan(stage, there["parts"].get("rules", 1))  # as where the plan is stored
    ours = parts(asked, stage, there["parts"]["inputs"], resolved=resolved, rules=rules)
    ours["libraries"] = there["parts"]["libraries"]
    compared = comparison(type(asked), stage, resolved=resolved, rules=rules)
    return Job.open(store, stage, ours, comparison=compared, accept_fingerprint=accept_fingerprint)


TODAY = {
    "encode": encode_config(),
    "train": train_config(),
    "generate": generate_config(),
    "generate-before-precision": generate_config(),
}
UNDER_OLDER_RULES = {"encode-counting-actors": encode_config(actors=7)}
SINCE = {
    "encode": ("images.background", "images.exif_orientation", "images.white_level", "precision"),
    "train": ("precision", "compile", "tf32", "batches_per_step", "validate_every", "validation_rows"),
    "generate": (
        "compile",
        "vae_precision",
        "labels",
        "guidance_scales",
        "format",
        "image_format",
        "png_level",
        "quality",
    ),
    "generate-before-precision": ("compile", "vae_precision"),
}
"""Settings that were not there that day."""
PLACEMENT_SINCE = {"train": {"num_workers": 2, "use_gpu": False}}
"""Settings that counted as content that day."""


@pytest.mark.parametrize("name", TODAY)
def test_a_folder_of_before_goes_on_under_its_own_fingerprint(name: str, tmp_path: Path) -> None:
    store = stored(name, tmp_path)
    before = {info.key: store.get(info.key) for info in store.list()}
    job = open_as_today(store, TODAY[name])
    assert job.fingerprint == json.loads(before["_job.json"])["fingerprint"]
    assert job.accepted is None
    assert (job.manifest(LatentsResult) is None) == (name != "encode")
    job.put("00077", "data/77", b"more", Facts())
    marker = job.marker("00077", Facts)
    assert marker is not None
    assert marker.fingerprint is None
    assert all(store.get(key) == data for key, data in before.items())


@pytest.mark.parametrize("name", RESOLVED)
def test_the_same_settings_have_the_fingerprint_of_that_day(name: str, tmp_path: Path) -> None:
    there = FOLDERS / name / "_job.json"
    store = open_store(str(tmp_path))
    asked = TODAY[name]
    that_day = json.loads(there.read_bytes())["parts"]
    ours = parts(asked, name, that_day["inputs"], resolved=RESOLVED[name](asked), rules=1)
    for setting in SINCE.get(name, ()):
        section, _, last = setting.rpartition(".")
        del (ours["config"][section] if section else ours["config"])[last]
    ours["config"] |= PLACEMENT_SINCE.get(name, {})
    Job.open(store, name, ours | {"libraries": that_day["libraries"]})
    assert store.get("_job.json") == there.read_bytes()


@pytest.mark.parametrize("name", UNDER_OLDER_RULES)
def test_what_was_begun_under_older_rules_is_finished_by_the_version_that_began_it(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(Conflict, match="under rules 1 of encode, .* deep greys are scaled"):
        open_as_today(stored(name, tmp_path), UNDER_OLDER_RULES[name])


def test_a_setting_that_became_placement_may_change_and_a_new_one_may_be_absent(tmp_path: Path) -> None:
    store = stored("train", tmp_path)
    later = train_config(LaterTrainConfig, num_workers=4)
    assert open_as_today(store, later).fingerprint == json.loads(store.get("_job.json"))["fingerprint"]
    with pytest.raises(Conflict, match=r"config.num_workers: 2 -> 4\)"):
        open_as_today(store, train_config(EarlierTrainConfig, num_workers=4))


def test_what_was_settled_without_a_setting_had_its_default(tmp_path: Path) -> None:
    """Absent in a settled section means the default; in what the user gives, it means "not asked for"."""
    for name, section, setting in (("train", "model", "mlp_ratio"), ("generate", "sampler", "eta")):
        store = stored(name, tmp_path)
        job = json.loads(store.get("_job.json"))
        del job["parts"]["config"][section][setting]
        job["fingerprint"] = fingerprint_of(job)
        (tmp_path / name / "_job.json").write_bytes(canonical(job))
        assert open_as_today(store, TODAY[name]).fingerprint == job["fingerprint"]


@pytest.mark.parametrize(
    ("name", "asked", "shown"),
    [
        ("encode", encode_config(mirror=True), "config.mirror: False -> True"),
        ("train", train_config(LaterTrainConfig, horizontal_shift=2), "config.horizontal_shift: 0 -> 2"),
        ("train", train_config(optimizer={"betas": (0.9, 0.95)}), "config.optimizer.learning_rate: 0.004 -> 0.0001"),
        ("train", train_config(model={"hidden_size": 16, "depth": 2, "num_heads": 2}), "config.model.depth: 1 -> 2"),
        ("generate", generate_config(sampler={"eta": 0.5}), "config.sampler.eta: 0.0 -> 0.5"),
        ("generate-before-precision", generate_config(precision="bfloat16"), "config.precision: float32 -> bfloat16"),
        ("encode-counting-actors", encode_config(batch_size=3), "config.batch_size: 32 -> 3"),
    ],
)  # fmt: skip
def test_what_gives_other_bytes_is_refused_by_name(
    name: str, asked: config.StageConfig, shown: str, tmp_path: Path
) -> None:
    with pytest.raises(Conflict, match="was begun with other settings") as refused:
        open_as_today(stored(name, tmp_path), asked)
    assert f"({shown})" in str(refused.value)


def new_rules(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the stage gives other bytes than that day."""
    monkeypatch.setitem(STAGE_RULES, stage, (*STAGE_RULES[stage], "noise is drawn in float64"))


def test_a_half_done_folder_under_older_rules_is_refused_with_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_rules("generate", monkeypatch)
    with pytest.raises(Conflict) as refused:
        open_as_today(stored("generate", tmp_path), generate_config(), accept_fingerprint=True)
    assert str(refused.value) == (
        f"{tmp_path}/generate was begun under rules 1 of generate, and this ray-dit has rules 4, which give "
        f"other bytes: {'; '.join(STAGE_RULES['generate'][1:3])}; noise is drawn in float64: finish it with the ray-dit that "
        "began it, or take another output folder"
    )
    with pytest.raises(
        Conflict, match="nothing was made there yet, so delete it if no run is under way, or fin"
    ):
        open_as_today(stored("generate-before-precision", tmp_path), generate_config())


def test_a_finished_folder_under_older_rules_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_rules("encode", monkeypatch)
    store = stored("encode", tmp_path)
    manifest = open_as_today(store, encode_config()).manifest(LatentsResult)
    assert manifest is not None
    assert manifest.facts.rows == 12
    tally = Tally()
    problems = [problem.what for problem in verify(store, tally=tally)]
    assert (
        problems == ["missing"] * 3
    )  # the shards, which are not kept here; nothing is said against the job itself
    with pytest.raises(Conflict, match="other settings"):
        open_as_today(store, encode_config(mirror=True))


def test_rules_are_written_from_two_on_and_a_newer_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = train_config()
    monkeypatch.setitem(STAGE_RULES, "train", STAGE_RULES["train"][:1])
    assert "rules" not in parts(asked, "train", {})
    with monkeypatch.context() as later:
        new_rules("train", later)
        assert parts(asked, "train", {})["rules"] == 2
        there = json.loads((FOLDERS / "train/_job.json").read_bytes())["parts"]
        ours = parts(asked, "train", there["inputs"], resolved=train_resolved(asked))
        store = open_store(str(tmp_path / "later"))
        Job.open(store, "train", ours | {"libraries": there["libraries"]}).put_plain("plan", b"plan")
    with pytest.raises(
        Conflict, match=r"by a newer ray-dit \(rules 2 of train; this one knows 1\): finish it with"
    ):
        open_as_today(store, asked)


def test_a_change_of_the_plan_alone_leaves_a_folder_whose_plan_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STAGE_RULES, "encode", STAGE_RULES["encode"][:2])
    there = {1: 1, 2: None, None: None}
    assert {begun: rules_with_plan("encode", begun) for begun in there} == there
    assert rules_with_plan("evaluate", 1) is None
    new_rules("encode", monkeypatch)
    assert [rules_with_plan("encode", begun) for begun in (1, 2)] == [None, None]
    with pytest.raises(Conflict, match="rules 1 of encode, and this ray-dit has rules 3.* float64"):
        open_as_today(stored("encode-counting-actors", tmp_path), encode_config())


def test_a_change_of_the_form_of_shards_leaves_a_folder_that_is_written_in_the_form_before() -> None:
    assert [rules_with_plan("encode", begun) for begun in (None, 1, 2, 3, 4)] == [None, None, None, 3, None]
    assert len(STAGE_RULES["encode"]) == ROWS_SINCE


def test_every_job_has_rules_with_a_history() -> None:
    assert set(STAGE_RULES) == {"train-vae", "encode", "train", "generate", "evaluate", "model"}
    assert all(history and all(history) for history in STAGE_RULES.values())


def test_a_stage_extends_its_job_and_finds_the_extension_again(tmp_path: Path) -> None:
    def job(images: str, *, extend: bool = False, **fields: Any) -> Job:
        asked = encode_config(output=str(tmp_path), **fields)
        return open_job(asked, "encode", {"images": images}, extend=extend, may_change=("inputs.images",))

    first = job("a")
    first.finish(Facts())
    assert job("a", extend=True) == first
    added = job("b", extend=True)
    assert (added.generation, job("b"), job("b", extend=True)) == (1, added, added)
    assert job("a") == first
    with pytest.raises(Conflict, match=r"inputs.images: b -> c\)"):
        job("c")
    with pytest.raises(Conflict, match=r"inputs.images: b -> c\)"):
        job("c", extend=True)
    added.finish(Facts())
    with pytest.raises(
        Conflict, match=r"can't be extended with other settings .* \(config.mirror: False -> True\)"
    ):
        job("c", extend=True, mirror=True)
    assert job("c", extend=True).generation == 2
