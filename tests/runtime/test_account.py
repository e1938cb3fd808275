"""What a run took of its actors, and what it cost."""

import contextlib

import pytest

from ray_dit.runtime.account import Account, ActorTime, Stopwatch


def test_a_stopwatch_counts_what_is_being_computed() -> None:
    now = 100.0
    watch = Stopwatch(lambda: now)
    now = 110.0
    with watch.computing():
        now = 113.0
        assert watch.read() == ActorTime(13.0, 3.0)
    now = 120.0
    assert watch.read() == ActorTime(20.0, 3.0)
    with contextlib.suppress(ValueError), watch.computing():
        now = 121.0
        raise ValueError("a shard that fails takes its time too")
    assert watch.read() == ActorTime(21.0, 4.0)


def test_times_add_up_to_the_share_of_all() -> None:
    assert ActorTime().share == 0
    together = ActorTime(3000.0, 3000.0) + ActorTime(600.0, 0.0)
    assert together.hours == 1
    assert together.share == pytest.approx(5 / 6)


def test_an_account_in_numbers_and_in_words() -> None:
    account = Account(2000, "images", 900.0, ActorTime(7200.0, 5400.0), price=3.0)
    assert account.facts() == {
        "images_per_second": 2.222, "actor_hours": 2.0, "computing_share": 0.75,
        "price_per_hour": 3.0, "cost_per_1000": 3.0,
    }  # fmt: skip
    words = "2,000 images in 15 min 00 s, 2.22/s, 2 actor-hours, 75% of them computing"
    assert str(account) == f"{words}, at 3 per 1,000 images"
    unpriced = Account(2000, "images", 900.0, ActorTime(7200.0, 5400.0))
    assert str(unpriced) == words
    assert "cost_per_1000" not in unpriced.facts()
    large = Account(10_000_000, "images", 8000.0, ActorTime(3600.0 * 1234, 3600.0 * 617))
    assert str(large) == "10,000,000 images in 2 h 13 min, 1,250/s, 1,234 actor-hours, 50% of them computing"
    assert Account(0, "images", 900.0, ActorTime(), price=3.0).cost_per_1000 is None
