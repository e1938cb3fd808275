"""The comparison of two commits' bytes can fail: differing, missing and new objects."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import same_bytes
from tests.support.same_bytes import PIPELINE, Objects, compare, read_objects

FOLDERS = [folder for step in PIPELINE for folder in step.folders]


def objects(changed: dict[str, str | None] | None = None, rules: dict[str, int] | None = None) -> Objects:
    """Two objects in every folder; ``changed`` gives ``data`` of a folder another hash, or takes it away."""
    hashes = {f"{folder}/_job.json": "1" for folder in FOLDERS} | {
        f"{folder}/data": "2" for folder in FOLDERS
    }
    for folder, value in (changed or {}).items():
        hashes[f"{folder}/data"] = value or ""
    jobs: dict[str, Any] = {folder: {"parts": {"config": {"seed": 0}}} for folder in FOLDERS}
    for folder, number in (rules or {}).items():
        jobs[folder]["parts"]["rules"] = number
        hashes[f"{folder}/_job.json"] = f"rules {number}"
    return Objects({key: value for key, value in hashes.items() if value}, jobs)


def test_equal_objects_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(compare("here", PIPELINE, objects(), objects())) == []
    assert capsys.readouterr().out.count("  equal") == len(PIPELINE)


@pytest.mark.parametrize(
    ("base", "tree", "said"),
    [
        ({}, {"latents": "3"}, "differs: latents/data"),
        ({}, {"latents": None}, "missing: latents/data"),
        ({"latents": None}, {}, "extra: latents/data"),
    ],
)
def test_a_difference_is_named(
    base: dict[str, Any], tree: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(compare("here", PIPELINE, objects(base), objects(tree))) == ["encode"]
    assert said in capsys.readouterr().out


def test_another_rules_number_explains_its_stage_and_those_after_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = objects({"latents": "3", "dataset-1": "3"}, rules={"latents": 2})
    assert list(compare("here", PIPELINE, objects(), tree)) == []
    printed = capsys.readouterr().out
    assert "latents/_job.json: parts.rules: '(absent)' -> 2" in printed
    assert printed.count("as its rules number says") == 2
    # a stage before it, or beside it, is not explained
    assert list(compare("here", PIPELINE, objects(), objects({"vae": "3"}, rules={"latents": 2}))) == [
        "train-vae"
    ]


def test_a_rules_number_of_one_is_that_of_a_job_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(compare("here", PIPELINE, objects(), objects({"latents": "3"}, rules={"latents": 1}))) == [
        "encode"
    ]


class Files:
    """An fsspec file system of a few objects."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def find(self, root: str) -> list[str]:
        return [name for name in self.objects if name.startswith(root)]

    def cat_file(self, name: str) -> bytes:
        return self.objects[name]


def test_clocks_hosts_and_the_input_are_not_compared() -> None:
    files = Files(
        {"/root/vae/_runs/1/start.json": b"a", "/root/_check/x": b"b", "/root/images/1.png": b"c"}
        | {"/root/vae/_job.json": b"{}", "/root/vae/w": b"d"}
    )
    assert set(read_objects(files, "/root").sha256) == {"vae/_job.json", "vae/w"}


def test_code_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """PYTHONPATH names another checkout than the one that is asked for."""
    (tmp_path / "commands.json").write_text("[]")
    ran = subprocess.run(
        [sys.executable, "-P", str(same_bytes.RUNNER), str(tmp_path), str(tmp_path / "commands.json")],
        env={"PATH": "", "PYTHONPATH": str(same_bytes.ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr
    assert "not from" in ran.stderr
