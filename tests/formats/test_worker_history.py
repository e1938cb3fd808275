"""Worker history: what adds a segment, and how keys hold it."""

import pytest

from ray_dit.formats.worker_history import (
    History,
    Segment,
    history_hash,
    in_words,
    keyed,
    until,
    with_start,
)

ONE = with_start((), 0, 1, ["a"])


@pytest.mark.parametrize(
    ("workers", "kinds", "segments"),
    [(1, ["a"], 1), (1, ["b"], 2), (2, ["a", "a"], 2), (2, ["a", "b"], 2)],
)
def test_other_workers_add_a_segment_from_the_step_they_go_on_at(
    workers: int, kinds: list[str], segments: int
) -> None:
    history = with_start(ONE, 100, workers, kinds)
    assert len(history) == segments
    assert history[0] == Segment(first=0, workers=1, kind="a")
    if segments == 2:
        assert history[1] == Segment(first=100, workers=workers, kind=" | ".join(dict.fromkeys(kinds)))
    assert until(history, 100) == ONE
    assert until(history, 101) == history


def test_the_order_of_unlike_workers_counts() -> None:
    assert with_start((), 0, 2, ["a", "b"]) != with_start((), 0, 2, ["b", "a"])


def test_keys_hold_the_hash_ahead_of_the_suffix() -> None:
    mark = history_hash(ONE)
    assert len(mark) == 8
    others = (
        with_start(ONE, 100, 2, ["a", "a"]),
        with_start((), 0, 2, ["a", "a"]),
        with_start((), 0, 1, ["b"]),
        with_start((), 4, 1, ["a"]),
    )
    assert len({mark, *map(history_hash, others)}) == 5
    assert history_hash(()) == ""
    keys = ("loss.json", "samples/step-00000006.png", "a.b/c")
    assert [keyed(key, ONE) for key in keys] == [
        f"loss-{mark}.json",
        f"samples/step-00000006-{mark}.png",
        f"a.b/c-{mark}",
    ]
    assert [keyed(key, ()) for key in keys] == [*keys]


def test_it_is_said_in_words() -> None:
    history: History = with_start(ONE, 100, 2, ["b", "b"])
    assert in_words(history) == "1 worker (a) from step 0, 2 workers (b) from step 100"
