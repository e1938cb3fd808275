"""What the benchmark of scale makes of the times it is told."""

from benchmarks.scale import efficiency, per_shard, steady


def shard(actor: int, ready: float, begin: float, end: float) -> dict[str, float]:
    return {"actor": actor, "ready": ready, "begin": begin, "end": end}


TOLD = [
    shard(1, 0, 0, 10),
    shard(1, 0, 10, 20),
    shard(1, 0, 20, 30),
    shard(2, 5, 7.5, 17.5),
    shard(2, 5, 20, 25),
]


def test_the_steady_state_is_while_all_are_there_and_busy() -> None:
    assert steady(TOLD) == (5, 25)


def test_efficiency_is_the_share_of_the_time_in_which_actors_compute() -> None:
    found = efficiency(TOLD)
    assert found["steady_seconds"] == 20
    assert found["efficiency_steady"] == (20 + 15) / 40
    assert found["efficiency_of_the_whole"] == 45 / 60


def test_processor_time_is_told_for_each_shard() -> None:
    assert per_shard({"driver": 0.5}, 100) == {"driver": 5.0}
