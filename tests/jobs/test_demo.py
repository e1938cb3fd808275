"""The demo's own parts: settings moved to another folder, and the demos on S3 and on disk compared."""

import re
from pathlib import Path

import pytest

from jobs.demo import SETTINGS, STAGES, relocated
from jobs.demo_s3 import compare, digests
from ray_dit import cli
from ray_dit.errors import UserError
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store


@pytest.mark.parametrize("folder", ["/somewhere/else", "s3://bucket/demo"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_the_demo_moves(
    stage: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = cli.parse(stage, cli.COMMANDS[stage].config, ["--config", str(SETTINGS)])
    moved = relocated(config, folder)
    section = re.search(rf"^{stage}:\n((?:  .*\n|\n)*)", SETTINGS.read_text(), flags=re.MULTILINE)
    assert section is not None
    wanted = sorted(path.replace("demo", folder, 1) for path in re.findall(r"\bdemo/[\w./]+", section[1]))
    found = sorted(re.findall(rf"{folder}/[\w./]+", moved.model_dump_json()))
    assert found == wanted
    assert wanted
    assert str(tmp_path) not in moved.model_dump_json()
    assert relocated(moved, folder) == moved
    assert not hasattr(config, "content") or moved.content().keys() == config.content().keys()


@pytest.fixture
def two(tmp_path: Path) -> tuple[Store, Path]:
    """Two equal demos in small."""
    for name in ("left", "right"):
        store = open_store(str(tmp_path / name))
        store.put("evaluation/manifest.json", b"{}")
        store.put("model/model.safetensors", b"weights")
        store.put(f"model/_runs/{name}/start.json", name.encode())
        store.put("report.html", name.encode())
    return open_store(str(tmp_path / "left")), tmp_path / "right"


def test_equal_demos_are_said_to_be_equal_whatever_their_clocks_and_reports(two: tuple[Store, Path]) -> None:
    assert compare(*two) == f"equal: all 2 objects at {two[0].uri} have the sha256 of their files in {two[1]}"
    assert digests(two[0]).keys() == {"evaluation/manifest.json", "model/model.safetensors"}


@pytest.mark.parametrize("change", ["other bytes", "missing", "one more"])
def test_a_difference_is_named(change: str, two: tuple[Store, Path]) -> None:
    store, folder = two
    path = folder / "model/model.safetensors"
    match change:
        case "other bytes":
            path.write_bytes(b"Weights")
        case "missing":
            path.unlink()
        case _:
            store.delete("model/model.safetensors")
    with pytest.raises(UserError, match="1 objects differ .*, first model/model.safetensors"):
        compare(store, folder)


def test_without_a_demo_on_disk_it_says_so(two: tuple[Store, Path], tmp_path: Path) -> None:
    assert "no finished demo to compare with" in compare(two[0], tmp_path / "nothing")
