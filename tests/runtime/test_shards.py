"""The fan-out on a real Ray: everyone works, and shards that raise, kill or hang cost only themselves."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from ray_dit.config import EncodeConfig, ImagesConfig, ShardsConfig
from ray_dit.errors import UserError
from ray_dit.ledger.job import Job
from ray_dit.results import ShardFacts
from ray_dit.runtime import shards
from ray_dit.runtime.account import ActorTime
from ray_dit.runtime.coordinator import News, Outcome
from ray_dit.runtime.shard_maker import shard_name
from ray_dit.runtime.shard_queue import TRIES, Failure
from ray_dit.runtime.shards import Work, _Watch, make_shards, pool_sizes, reserve, shard_sizes
from ray_dit.storage.local import LocalStore
from tests.support.shard_makers import SIZE, made, run

DEADLINE = 3.0
"""Seconds, for shards that take a moment; what raises or dies is noticed without it."""


def records(folder: Path) -> dict[str, Any]:
    """What the last run wrote down of itself at its end."""
    return json.loads(max((folder / "out/_runs").glob("*/end.json")).read_text())


def failures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "out/_runs").glob("*/events/*.json"))]


def expected(shards: Any) -> dict[str, bytes]:
    return {f"{shard:05d}": f"shard {shard}".encode() for shard in shards}


@pytest.mark.ray
def test_actors_that_are_ready_together_make_equal_numbers(
    one_ray: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(one_ray, tmp_path, 41, actors=3, seconds=0.3, together=3, price=7.0)
    record = records(tmp_path)
    counts = record["shards_by_actor"]
    assert sum(counts) == 41
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 2
    assert made(tmp_path) == expected(range(41))
    assert record["actor_hours"] < 3 * record["seconds"] / 3600
    assert record["actor_hours"] * record["computing_share"] > 30 * 0.3 / 3600, "their last words are late"
    assert record["cost_per_1000"] == pytest.approx(1000 * 7 * record["actor_hours"] / 410, rel=1e-2)
    assert record["images_per_second"] == pytest.approx(410 / record["seconds"], rel=0.5)
    said = capsys.readouterr().err
    assert "41/41 shards" in said
    assert "test: 410 images in " in said


@pytest.mark.ray
def test_an_actor_reads_one_shard_computes_another_and_stores_a_third(one_ray: Any, tmp_path: Path) -> None:
    """The phases wait for each other: one after the other they would wait until the deadline."""
    run(one_ray, tmp_path, 8, actors=1, abreast=True, deadline=60.0)
    assert made(tmp_path) == expected(range(8))
    assert failures(tmp_path) == []
    threads = {(tmp_path / f"claims/compute-{shard}").read_text() for shard in range(8)}
    assert len(threads) == 1, "torch's number of threads is that of each thread"


@pytest.mark.ray
def test_a_slow_actor_makes_less(one_ray: Any, tmp_path: Path) -> None:
    run(one_ray, tmp_path, 30, actors=3, seconds=0.3, together=3, slow=4)
    counts = sorted(records(tmp_path)["shards_by_actor"])
    assert counts[0] < counts[1] / 2
    assert sum(counts) == 30


@pytest.mark.ray
def test_few_shards_reach_every_actor(one_ray: Any, tmp_path: Path) -> None:
    run(one_ray, tmp_path, 8, actors=2, seconds=0.5, together=2)
    assert sorted(records(tmp_path)["shards_by_actor"]) == [4, 4]


@pytest.mark.ray
def test_a_coordinator_that_dies_is_replaced_and_nothing_is_made_twice(
    one_ray: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(one_ray, tmp_path, 14, actors=3, seconds=0.3, poison={6: "orphan"}, once=True)
    assert made(tmp_path) == expected(range(14))
    assert records(tmp_path)["images"] == 14 * SIZE
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_coordinators_that_die_every_time_end_the_job_and_cost_what_was_not_made(
    one_ray: Any, tmp_path: Path
) -> None:
    poison = dict.fromkeys(range(14), "orphan")
    with pytest.raises(UserError, match="hands out the shards of test died 3 times"):
        run(one_ray, tmp_path, 14, actors=2, seconds=0.3, poison=poison)
    run(one_ray, tmp_path, 14, actors=2)
    assert made(tmp_path) == expected(range(14))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("poison", "causes", "deadline"),
    [
        ({2: "raise", 5: "kill"}, {2: "ValueError: not a number", 5: "died"}, None),
        ({2: "stop", 5: "hang"}, {2: "not finished", 5: "not finished"}, DEADLINE),
    ],
)
def test_poison_is_tried_three_times_while_the_rest_is_made(
    one_ray: Any,
    tmp_path: Path,
    poison: dict[int, str],
    causes: dict[int, str],
    deadline: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = rf"2 of 14 shards failed in all 3 tries \(shard 2: .*{causes[2]}.*; shard 5: .*{causes[5]}"
    with pytest.raises(UserError, match=listed):
        run(one_ray, tmp_path, 14, actors=3, seconds=0.05, poison=poison, deadline=deadline)
    said = capsys.readouterr().err
    assert made(tmp_path) == expected(set(range(14)) - poison.keys())
    assert records(tmp_path)["failed"] == sorted(poison)
    assert records(tmp_path)["images"] == 12 * SIZE
    for shard, cause in causes.items():
        tries = [event for event in failures(tmp_path) if event.get("shard") == shard and "try" in event]
        assert [event["try"] for event in tries] == list(range(1, TRIES + 1))
        assert all(cause in event["cause"] for event in tries)
        assert f"shard {shard} failed (try {TRIES} of {TRIES})" in said
    job = run(one_ray, tmp_path, 14, actors=2)  # the cause is gone
    assert made(tmp_path) == expected(range(14))
    assert records(tmp_path)["shards"] == len(poison)
    assert set(job.names()) == {shard_name(shard) for shard in range(14)}


@pytest.mark.ray
@pytest.mark.slow
def test_shards_whose_process_is_lost_once_are_made(one_ray: Any, tmp_path: Path) -> None:
    lost = {5: "kill", 8: "stop"}
    run(one_ray, tmp_path, 12, actors=1, seconds=0.05, poison=lost, once=True, deadline=DEADLINE)
    assert made(tmp_path) == expected(range(12))
    assert records(tmp_path)["failed"] == []
    assert records(tmp_path)["images"] == 12 * SIZE, "progress must not come from rows, which Ray drops"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("what", "said"), [("alarm", "other bytes came out"), ("expire", "no fresh ones came")]
)
def test_what_ends_every_shard_ends_the_job_at_once(
    one_ray: Any, tmp_path: Path, what: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"^{said}$"):
        run(one_ray, tmp_path, 200, actors=2, seconds=0.1, poison={5: what})
    assert len(made(tmp_path)) < 100


@pytest.mark.ray
def test_what_no_actor_can_do_is_said_once(one_ray: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^there is no model here$"):
        run(one_ray, tmp_path, 6, actors=2, start="refuse")


@pytest.mark.ray
def test_more_actors_than_there_is_room_for(one_ray: Any, tmp_path: Path) -> None:
    run(one_ray, tmp_path, 20, actors=9, seconds=0.1)
    assert made(tmp_path) == expected(range(20))


@pytest.mark.ray
def test_a_range_of_which_not_even_the_fewest_have_room(one_ray: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 CPUs are wanted at once and this machine's Ray has 4"):
        run(one_ray, tmp_path, 20, actors="5..9")
    run(one_ray, tmp_path, 4, actors="5..9")  # never more than there are shards
    assert made(tmp_path) == expected(range(4))


@pytest.mark.ray
def test_no_actor_outlives_its_job(one_ray: Any, tmp_path: Path) -> None:
    run(one_ray, tmp_path, 3, actors=2, start="late-second")
    end = time.monotonic() + 60
    while one_ray.available_resources().get("CPU") != one_ray.cluster_resources()["CPU"]:
        assert time.monotonic() < end, "an actor that was still starting keeps its CPU"
        time.sleep(0.5)


@pytest.mark.ray
def test_a_process_that_dies_while_it_loads_is_started_again(one_ray: Any, tmp_path: Path) -> None:
    run(one_ray, tmp_path, 6, actors=1, start="kill-first")
    assert made(tmp_path) == expected(range(6))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "cause"), [("raise", "RuntimeError: no memory on the GPU"), ("kill", "died while it loaded")]
)
def test_actors_that_can_not_start_end_the_job(one_ray: Any, tmp_path: Path, start: str, cause: str) -> None:
    with pytest.raises(UserError, match=f"3 times in a row an actor could not start: .*{cause}"):
        run(one_ray, tmp_path, 6, actors=1, start=start)


@pytest.mark.ray
@pytest.mark.slow
def test_shards_may_take_longer_than_ray_waits_for_progress(
    one_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = one_ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 3)
    run(one_ray, tmp_path, 3, actors=1, seconds=7)
    assert made(tmp_path) == expected(range(3))
    assert context.execution_no_progress_timeout_s == 3, "the caller's own settings stay"


class Counting(LocalStore):
    """Counts what is read."""

    def get(self, key: str) -> bytes:
        reads.append(key)
        return super().get(key)


reads: list[str] = []


def test_a_resume_reads_no_marker(tmp_path: Path) -> None:
    config = ShardsConfig(output=str(tmp_path))
    job = Job.open(Counting(str(tmp_path)), "generate", {"made": "by a test"})
    for shard in range(20):
        job.put(shard_name(shard), f"data/{shard}", b"", ShardFacts(shard=shard))
    reads.clear()
    make_shards(
        None, config, job, lambda: pytest.fail("nothing is missing"), Work("test", "images", [SIZE] * 20)
    )
    assert reads == []


@dataclass
class OneAnswer:
    """A Ray whose coordinator has this news."""

    answer: News

    def get(self, ref: Any) -> News:
        return self.answer


def test_progress_tells_shards_tries_and_how_much_actors_compute() -> None:
    coordinator, shown, seen = MagicMock(), list[tuple[int, str]](), list[int]()
    work = Work("test", "images", [10] * 1000, look_in=seen.extend)
    watch = _Watch(
        work, MagicMock(), lambda done, note="": shown.append((done, note)), done=5000, shards_done=500
    )
    tries = [(Failure(3, 1, "no"), ""), (Failure(4, 3, "no"), ""), (Failure(5, 0, "no", counts=False), "")]
    news = News([7, 8], tries, [], [], [], lost=1, time=ActorTime(100.0, 80.0))
    watch.look(OneAnswer(news), coordinator)
    assert shown == [(5020, "502/1,000 shards, 2 retried, 1 failed, actors compute 80% of the time")]
    assert seen == [7, 8]
    watch.begin(range(400))  # another coordinator, and actors of its own
    watch.look(OneAnswer(replace(news, failures=[], lost=0, time=ActorTime(100.0, 40.0))), coordinator)
    assert watch.time == ActorTime(200.0, 120.0)
    assert shown[-1] == (6020, "602/1,000 shards, 2 retried, actors compute 60% of the time")


def test_a_coordinator_that_dies_when_all_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.open(LocalStore(str(tmp_path)), "generate", {"made": "by a test"})

    def make_and_die(*_: Any) -> Outcome:
        job.put(shard_name(0), "data/0", b"", ShardFacts(shard=0))
        return Outcome(stopped="it died", orphaned=True)

    monkeypatch.setattr(shards, "_fan_out", make_and_die)
    make_shards(
        OneNode(CPU=1.0), ShardsConfig(output=str(tmp_path)), job, MagicMock(), Work("test", "images", [SIZE])
    )


def test_shards_are_full_but_the_last() -> None:
    assert shard_sizes(10, 4) == [4, 4, 2]
    assert shard_sizes(8, 4) == [4, 4]
    assert shard_sizes(0, 4) == []


@pytest.mark.parametrize(
    ("actors", "shards", "sizes", "fewest"),
    [(8, 100, (8, 8), 1), ("2..64", 100, (2, 64), 2), ("2..64", 9, (2, 9), 2), ("8..8", 3, (3, 3), 8)],
)
def test_a_pool_asks_for_all_its_actors(
    actors: int | str, shards: int, sizes: tuple[int, int], fewest: int
) -> None:
    config = ShardsConfig(output="o", actors=actors)
    assert pool_sizes(config, shards) == {
        "min_size": sizes[0], "max_size": sizes[1], "initial_size": sizes[1]
    }  # fmt: skip
    assert config.fewest_actors == fewest


class OneNode:
    """A Ray of one machine."""

    def __init__(self, **resources: float) -> None:
        self._resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self._resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": self._resources, "Alive": True}]


GB = 1 << 30
FULL = Work("test", "images", [100], shard_bytes=GB, shared_bytes=GB)


@pytest.mark.parametrize(("there", "lanes", "memory"), [(9, 3, 4), (4, 3, 4), (3.5, 2, 3), (2, 1, 2)])
def test_an_actor_reserves_memory_for_as_many_shards_as_fit(there: float, lanes: int, memory: int) -> None:
    config = ShardsConfig(output="o")
    needed = {"num_cpus": 1, "memory": memory * GB}
    assert reserve(OneNode(CPU=4, memory=there * GB), config, FULL) == (needed, lanes)


def test_a_shard_that_fits_nowhere_is_refused_and_in_a_cluster_tried() -> None:
    small = OneNode(CPU=4, memory=GB)
    with pytest.raises(UserError, match="a shard of 100 images takes 2.1 GB of memory, and .* has 1.1 GB"):
        reserve(small, ShardsConfig(output="o"), FULL)
    elsewhere = ShardsConfig(output="o", address="auto")
    assert reserve(small, elsewhere, FULL) == ({"num_cpus": 1, "memory": GB}, 1)


def test_threads_that_decode_have_cpus_of_their_own() -> None:
    config = EncodeConfig(images=ImagesConfig(uri="i"), vae="v", output="o", threads=2, decode_threads=3)
    light = Work("test", "images", [1])
    assert reserve(OneNode(CPU=16.0), config, light) == ({"num_cpus": 5}, 3)
    assert reserve(OneNode(CPU=4.0), config, light) == ({"num_cpus": 4}, 3)
    with_gpu = config.model_copy(update={"use_gpu": True, "decode_threads": None})
    assert reserve(OneNode(CPU=16.0), with_gpu, light) == ({"num_cpus": 6}, 3)
