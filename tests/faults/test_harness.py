"""The short fixed set of disturbed runs, and whether the harness would notice what it is there to notice.

The long ones: ``make faults``.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_dit.storage.local import TEMP
from ray_dit.storage.open import open_store
from tests.faults.harness import oracle
from tests.faults.harness.blows import Blow, Dealer, draw_blows
from tests.faults.harness.oracle import Difference
from tests.support import tiny
from tests.support.proxy import Seen
from tests.support.small_job import small_job

RUNS = "encode-kills-4,generate-kills-3"
"""Of few blows that let a process sleep, which takes seconds; one strikes a raylet."""


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
def test_disturbed_runs_end_as_undisturbed_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.harness", "--only", RUNS]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = {line.split("  ")[0].strip(): line.split()[-2:] for line in done.stdout.splitlines()}
    assert table["runs"] == ["1", "1"]
    assert table["planned, never dealt"] == ["0", "0"]
    assert all(int(number) > 5 for number in table["faulty requests"])


def test_blows_are_a_function_of_the_seed() -> None:
    first, again, other = (draw_blows(random.Random(seed), 30) for seed in (1, 1, 2))
    assert first == again != other
    many = [blow for seed in range(300) for blow in draw_blows(random.Random(seed), 30)]
    assert {blow.victim for blow in many} == {"writer", "driver", "raylet", "worker"}
    assert {blow.number for blow in many} == {signal.SIGKILL, signal.SIGSTOP}
    assert {blow.at for blow in many} == set(range(1, 30))


def seen(number: int, key: str, *, forwarded: bool) -> Seen:
    return Seen(number, "PUT", f"/bucket/job/{key}", forwarded, 1)


def test_a_blow_falls_at_its_event_and_a_sleeper_wakes_after_the_manifest() -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    dealer = Dealer(
        "/bucket/job/",
        [Blow(2, True, "driver", signal.SIGSTOP), Blow(3, False, "driver", signal.SIGKILL)],
        lambda _: [victim.pid],
    )
    for key in ("_runs/x/start.json", "a", "b"):
        dealer(seen(1, key, forwarded=False))
        assert not dealer.hits
        dealer(seen(1, key, forwarded=True))
    assert dict(dealer.hits) == {"SIGSTOP driver": 1}
    _, status = os.waitpid(victim.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    dealer.wake()
    assert dealer.asleep == [victim.pid]
    dealer(seen(1, "manifest.json", forwarded=True))
    dealer.wake()
    assert dealer.asleep == []
    dealer(seen(1, "c", forwarded=False))
    assert victim.wait(10) == -signal.SIGKILL
    assert dealer.left == []


def test_a_blow_without_a_victim_waits() -> None:
    dealer = Dealer("/bucket/job/", [Blow(1, False, "raylet", signal.SIGKILL)], lambda _: [])
    dealer(seen(1, "a", forwarded=False))
    assert len(dealer.left) == 1, "a blow that struck nobody counts as dealt"


@pytest.mark.parametrize("harm", ["missing", "too many", "other bytes", "a temp file"])
def test_the_oracle_finds_it(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "job"
    small_job(open_store(str(folder)))
    whole = oracle.contents(open_store(str(folder)))
    shard = folder / "data/00001.bin"
    match harm:
        case "missing":
            shard.unlink()
        case "too many":
            shard.with_name("00009.bin").write_bytes(b"")
        case "other bytes":
            shard.write_bytes(shard.read_bytes()[:-1])
        case _:
            (folder / f"{TEMP}x").write_bytes(b"")
    with pytest.raises(Difference, match="loss.jsonl" if harm == "a temp file" else harm):
        oracle.check("train", str(folder), whole)
    assert not list(folder.rglob(f"{TEMP}*")), "gc left a temp file"


def test_the_oracle_counts_ids(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "job"))
    small_job(store)
    for shard in range(2):  # twice the same 16 images, where there should be 32
        store.put(f"data/train-{shard}.parquet", tiny.shard_bytes([b"x"] * 16, [0] * 16, range(16), ("a",)))
    for key in [info.key for info in store.list("data/") if info.key.endswith(".bin")]:
        store.delete(key)
    with pytest.raises(Difference, match="other images"):
        oracle.check("generate", str(tmp_path / "job"), oracle.contents(store))
