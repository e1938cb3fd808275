"""The coordinator without Ray: what it is told of shards, and when it hands out no more."""

from collections.abc import Mapping
from typing import Any

from ray_dit.runtime.account import ActorTime
from ray_dit.runtime.coordinator import Coordinator
from ray_dit.runtime.shard_queue import Turn


class UpTo:
    """Enough once so many were seen."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0

    def __call__(self, facts: Mapping[str, Any]) -> str | None:
        self.seen += facts["bad"]
        return f"{self.seen} are too many" if self.seen > self.most else None


def joined(enough: UpTo | None) -> Coordinator:
    coordinator = Coordinator(range(10), None, enough)
    coordinator.join("a", "1", None)
    return coordinator


def test_no_more_shards_are_handed_out_once_there_is_enough() -> None:
    coordinator = joined(UpTo(2))
    for shard, bad in enumerate((2, 0, 1)):
        assert coordinator.take("a", 0) == Turn(shard)
        coordinator.finish("a", shard, {"bad": bad})
    assert coordinator.take("a", 0) == Turn(over=True)
    assert coordinator.outcome().stopped == "3 are too many"
    assert coordinator.news(0).finished == [0, 1, 2]


def test_a_shard_that_two_have_made_counts_once() -> None:
    enough = UpTo(2)
    coordinator = joined(enough)
    coordinator.take("a", 0)
    for worker in ("a", "b"):
        coordinator.finish(worker, 0, {"bad": 2})
    assert (enough.seen, coordinator.outcome().stopped) == (2, None)


def test_without_a_limit_all_are_handed_out() -> None:
    coordinator = joined(None)
    for shard in range(10):
        assert coordinator.take("a", 0) == Turn(shard)
        coordinator.finish("a", shard, {"bad": 9})
    assert coordinator.outcome().stopped is None


def test_the_time_of_actors_is_the_last_word_of_each_process() -> None:
    coordinator = joined(None)
    coordinator.join("b", "3", None)
    coordinator.take("a", 0, ActorTime(1.0, 0.0))
    coordinator.take("a", 1, ActorTime(9.0, 5.0))
    coordinator.take("b", 0, ActorTime(10.0, 8.0))
    assert coordinator.news(0).time == ActorTime(19.0, 13.0)
    coordinator.join("a", "2", None)
    coordinator.take("a", 0, ActorTime(2.0, 1.0))
    assert coordinator.news(0).time == ActorTime(21.0, 14.0)


def test_a_shard_whose_process_died_is_told_to_be_suspect() -> None:
    coordinator = joined(None)
    assert coordinator.take("a", 0) == Turn(0)
    coordinator.join("a", "2", None)
    turns = [coordinator.take("a", 0)]
    while turns[-1].shard != 0:
        coordinator.finish("a", turns[-1].shard or 0, {})
        turns.append(coordinator.take("a", 0))
    assert [turn.suspect for turn in turns] == [False] * (len(turns) - 1) + [True]


def test_each_handle_is_told_once() -> None:
    coordinator = Coordinator(range(10), None)
    for worker in "abc":
        coordinator.join(worker, "1", f"handle of {worker}")
    assert coordinator.news(0).joined == ["handle of a", "handle of b", "handle of c"]
    coordinator.join("b", "2", "handle of b")
    coordinator.join("d", "1", "handle of d")
    assert coordinator.news(3).joined == ["handle of d"]
    assert coordinator.news(3).joined == ["handle of d"]  # the answer before was lost
    assert coordinator.news(4).joined == []
