"""The whole pipeline once undisturbed on a disk, and again: killed in every stage, and on a real S3 server.

Both end in the bytes of the first. SIGKILL comes from outside, at random times. Every stage runs as its own
process with its own Ray, as a user would run it. The moment of the kill is drawn from a seed; which stages it
hit, and whether anything was lost, is checked on the files.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from jobs.demo_s3 import compare, digests
from ray_dit.errors import UserError
from ray_dit.ledger.maintenance import gc, verify
from ray_dit.ledger.verification import FOREIGN
from ray_dit.results import RESULTS
from ray_dit.storage.local import TEMP
from ray_dit.storage.open import open_store
from tests.support import pipeline, seaweed, tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

SEED = int(os.environ.get("RAY_DIT_KILL_SEED", "0"))


def kill_during(folder: Path, stage: str, home: Path, after: float, *options: str) -> bool:
    """Kills the stage and everything it started, ``after`` seconds past its first result.

    False if it was done before.
    """
    process = pipeline.start(folder, stage, home, *options)
    begun, tag = time.monotonic(), "-g01" if options else ""
    while not wrote(folder, stage, tag) and process.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.02)
    time.sleep(after)
    alive = process.poll() is None
    family = (
        [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        if alive
        else []
    )
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    return alive


OUTPUT = {
    "train-vae": "vae",
    "encode": "latents",
    "train": "run",
    "generate": "dataset",
    "evaluate": "evaluation",
}

OUTPUTS = (*OUTPUT.values(), "model")


def wrote(folder: Path, stage: str, tag: str = "") -> bool:
    """Whether the stage has results that a later run can go on from: a checkpoint, a finished shard.

    ``tag``: that of a generation.
    """
    output = folder / OUTPUT[stage]
    return any(output.glob(f"_plain{tag}/checkpoints/*")) or any(output.glob(f"_markers{tag}/*.json"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pipeline.write_images(folder / "images")
    pipeline.finish(folder, ",".join(pipeline.STAGES), tmp_path_factory.mktemp("home"))
    return folder


def test_killed_in_every_stage_and_run_again(undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    home, folder = tmp_path / "home", tmp_path / "killed"
    home.mkdir()
    pipeline.write_images(folder / "images")
    hit: dict[str, int] = {}
    for stage in pipeline.STAGES:
        after = chance.uniform(0.0, 1.5)
        hit[stage] = kill_during(folder, stage, home, after)
        print(f"{stage}: killed {after:.2f} s after its first result: {bool(hit[stage])}")
        pipeline.finish(folder, stage, home)
    whole, killed = tiny.contents(undisturbed), tiny.contents(folder)
    assert killed.keys() == whole.keys()
    assert [name for name in whole if whole[name] != killed[name]] == [], f"seed {SEED}"
    assert sum(hit.values()) >= 3, hit
    list(gc(open_store(str(folder)), older_than=0))
    assert list(folder.rglob(f"{TEMP}*")) == [], "gc left what a killed writer left"


@pytest.mark.s3
def test_on_s3_and_on_disk_every_object_is_the_same(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.environment(seaweed.endpoint()).items():
        monkeypatch.setenv(name, value)
    uri = seaweed.fresh_uri("pipeline")
    store = open_store(uri)
    for path in sorted((undisturbed / "images").rglob("*.png")):
        store.put(str(path.relative_to(undisturbed)), path.read_bytes())
    pipeline.finish(uri, ",".join(pipeline.STAGES), tmp_path)
    on_s3 = digests(store)
    assert on_s3 == tiny.contents(undisturbed)
    assert {key.split("/")[0] for key in on_s3} >= {"vae", "latents", "run", "model", "dataset", "evaluation"}
    assert not [key for key in on_s3 if "ray_train" in key]
    assert (
        compare(store, undisturbed)
        == f"equal: all {len(on_s3)} objects at {uri} have the sha256 of their files in {undisturbed}"
    )
    metrics = undisturbed / "evaluation/metrics.json"
    whole = metrics.read_bytes()
    metrics.write_bytes(b"{}")
    with pytest.raises(UserError, match=r"1 objects differ .*evaluation/metrics.json"):
        compare(store, undisturbed)
    metrics.write_bytes(whole)


EXTENSIONS = {
    "train": ("--steps", "240", "--model-output", "demo/model-g01", "--extend"),
    "generate": ("--num-images", "90", "--extend"),
}


@pytest.mark.faults
def test_killed_in_an_extension_and_run_again(undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    whole, killed, home = tmp_path / "whole", tmp_path / "killed", tmp_path / "home"
    home.mkdir()
    for folder in (whole, killed):
        shutil.copytree(undisturbed, folder)
    hit = 0
    for stage, options in EXTENSIONS.items():
        pipeline.finish(whole, stage, home, *options)
        after = chance.uniform(0.0, 0.5)
        hit += kill_during(killed, stage, home, after, *options)
        print(f"{stage} --extend: killed {after:.2f} s after its first result; {hit} hits")
        pipeline.finish(killed, stage, home, *options)
    extended = tiny.contents(whole)
    assert tiny.contents(killed) == extended, f"seed {SEED}"
    assert hit
    before = tiny.contents(undisturbed)
    changed = [name for name in before if extended[name] != before[name]]
    assert changed == ["dataset/README.md"]
    assert list(verify(open_store(str(killed)), results=RESULTS)) == []


def test_verify_finds_a_flipped_bit_in_any_object(undisturbed: Path) -> None:
    """Each object of the pipeline's folders once; but for Ray Train's notes, which are not the job's."""
    assert list(verify(open_store(str(undisturbed)), results=RESULTS)) == []
    flipped = 0
    for folder in OUTPUTS:
        store = open_store(str(undisturbed / folder))
        for path in sorted((undisturbed / folder).rglob("*")):
            key = str(path.relative_to(undisturbed / folder))
            if not path.is_file() or key.startswith(FOREIGN):
                continue
            whole = path.read_bytes()
            tiny.flip_bit(path)
            assert key in [problem.key for problem in verify(store, results=RESULTS)]
            path.write_bytes(whole)
            flipped += 1
    print(f"{flipped} objects flipped and found")
    assert flipped > 200
    assert list(verify(open_store(str(undisturbed)), results=RESULTS)) == []


def test_running_it_again_writes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.is_file()}

    before = times()
    pipeline.finish(undisturbed, ",".join(pipeline.STAGES), tmp_path)
    assert times() == before
