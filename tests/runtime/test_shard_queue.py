"""The queue that shards are pulled from: who gets what, and what becomes of shards that fail, as sequences of calls."""

import heapq
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_dit.runtime.shard_queue import HOPELESS, LEAST_DEADLINE, STARTS, TRIES, ShardQueue, Turn

OVER = Turn(over=True)
ASK_AGAIN = Turn()


def queue(shards: int, *, workers: str = "ab", deadline: float | None = None) -> ShardQueue:
    made = ShardQueue(range(shards), deadline=deadline)
    for worker in workers:
        made.join(worker, "first")
    return made


def test_each_worker_gets_what_nobody_has_begun() -> None:
    shards = queue(3)
    assert [shards.take(worker, 0).shard for worker in "aba"] == [0, 1, 2]
    for worker, shard in (("a", 0), ("b", 1)):
        assert shards.finish(worker, shard, 1) and not shards.over
    assert shards.finish("a", 2, 1)
    assert shards.over and shards.take("b", 1) == OVER
    assert shards.made == {"a": 2, "b": 1}


def test_a_worker_that_joins_late_gets_its_share() -> None:
    shards = queue(10, workers="a")
    shards.take("a", 0)
    shards.join("late", "first")
    assert shards.take("late", 5).shard == 1


def test_what_a_dead_process_held_is_made_by_others_and_counts_as_a_try() -> None:
    shards = queue(2)
    assert shards.take("a", 0).shard == 0
    assert shards.join("a", "first") == []  # the same process
    (failure,) = shards.join("a", "second")
    assert (failure.shard, failure.failures) == (0, 1) and "died" in failure.cause
    assert [shards.take("b", 0).shard, shards.take("a", 0).shard] == [1, 0]


def test_a_shard_is_tried_three_times_after_those_that_wait_and_then_given_up() -> None:
    shards = queue(2, workers="a")
    tried: list[int] = []
    while (shard := shards.take("a", 0).shard) is not None:
        tried.append(shard)
        if shard == 1:
            shards.finish("a", 1, 1)
        else:
            failure = shards.fail("a", 0, f"cause {len(tried)}")
            assert failure is not None and failure.failures == tried.count(0)
    assert tried == [0, 1, 0, 0] and TRIES == 3
    assert shards.lost == {0: "cause 4"} and shards.over and shards.stopped is None
    assert shards.made == {"a": 1}


def test_the_deadline_is_a_setting() -> None:
    shards = queue(1, deadline=4)
    shards.take("a", 10)
    assert shards.overdue(14) == ([], [])
    workers, (failure,) = shards.overdue(14.1)
    assert (
        workers == ["a"]
        and "not finished within 4 s" in failure.cause
        and "--shard-deadline" in failure.cause
    )
    assert shards.take("b", 15).shard == 0
    assert shards.fail("a", 0, "killed") is None  # it holds nothing any more


@pytest.mark.parametrize("seconds, allowed", [(1, LEAST_DEADLINE), (60, 20 * 60)])
def test_by_default_the_deadline_follows_the_median(seconds: float, allowed: float) -> None:
    shards = queue(4, workers="a")
    for shard, took in enumerate((seconds / 2, seconds, 100 * seconds)):
        shards.take("a", 0)
        shards.finish("a", shard, took)
    shards.take("a", 0)
    assert shards.overdue(allowed) == ([], [])
    assert shards.overdue(allowed + 1)[0] == ["a"]


def test_where_nothing_is_finished_yet_each_try_may_take_twice_as_long() -> None:
    shards = queue(1, workers="a")
    for number in range(TRIES):
        shards.take("a", 0)
        assert shards.overdue(LEAST_DEADLINE * 2**number) == ([], [])
        assert shards.overdue(LEAST_DEADLINE * 2**number + 1)[0] == ["a"]
    assert shards.lost.keys() == {0}


def test_a_worker_that_finishes_past_its_deadline_has_finished() -> None:
    shards = queue(3, deadline=4)
    shards.take("a", 0)
    shards.overdue(5)
    assert shards.finish("a", 0, 6) and shards.made["a"] == 1
    assert [shards.take("b", 6).shard for _ in range(2)] == [1, 2]
    assert shards.take("a", 6).shard is None  # 0 waited to be tried again, and is not
    assert shards.finish("b", 1, 7) and shards.finish("b", 2, 7) and shards.over


def test_two_that_are_stuck_with_the_same_shard_are_both_ended() -> None:
    shards = queue(2, workers="abc", deadline=4)
    shards.take("c", 0)
    shards.finish("c", 0, 1)
    for now in (1, 10, 20):
        shards.take("a", now)
        if now < 20:
            shards.overdue(now + 5)
    assert shards.take("b", 22).shard == 1  # for the second time at the same time
    workers, failures = shards.overdue(30)
    assert workers == ["a", "b"] and [failure.failures for failure in failures] == [TRIES]
    assert shards.over and shards.lost.keys() == {1}


def test_a_given_up_shard_that_is_finished_after_all_is_not_lost() -> None:
    shards = queue(1, deadline=4, workers="abc")
    for worker in "abc":
        shards.take(worker, 0)
        shards.overdue(5)
    assert shards.lost.keys() == {0} and shards.over
    assert shards.finish("b", 0, 6) and not shards.lost


def test_an_idle_worker_does_again_what_another_holds_longer_than_usual() -> None:
    shards = queue(3, workers="abc")
    for worker in "abc":
        shards.take(worker, 0)
    assert shards.take("idle", 0) == ASK_AGAIN  # nothing tells how long a shard takes
    shards.finish("a", 0, 10)
    assert shards.take("a", 9.9) == ASK_AGAIN
    assert shards.take("a", 10).shard == 1
    assert shards.take("idle", 11).shard == 2
    assert shards.take("another", 99) == ASK_AGAIN  # two are at each of them
    assert shards.finish("a", 1, 15) and not shards.finish("b", 1, 30)
    assert shards.fail("b", 1, "late") is None
    assert shards.finish("c", 2, 30) and shards.over
    assert shards.made == {"a": 2, "b": 0, "c": 1}


def test_a_try_that_fails_beside_another_leaves_the_shard_to_that_one() -> None:
    shards = queue(2)
    shards.take("a", 0)
    shards.take("b", 0)
    shards.finish("a", 0, 1)
    assert shards.take("a", 2).shard == 1
    assert shards.fail("a", 1, "no memory") is not None
    assert shards.finish("b", 1, 3) and shards.over and not shards.lost


def test_a_job_in_which_nothing_works_ends_early() -> None:
    shards = queue(10 * HOPELESS, workers="a")
    for number in range(HOPELESS):
        assert not shards.over
        shards.fail("a", shards.take("a", 0).shard or 0, f"disk full {number}")
    assert shards.over and shards.take("a", 0) == OVER
    assert f"disk full {HOPELESS - 1}" in str(shards.stopped)


def test_a_few_bad_shards_do_not_end_it() -> None:
    shards = queue(10 * HOPELESS, workers="a")
    for number in range(3 * HOPELESS):
        shard = shards.take("a", number).shard
        assert shard is not None
        if number % 2:
            shards.fail("a", shard, "bad")
        else:
            shards.finish("a", shard, number)
    assert shards.stopped is None


def test_processes_that_never_get_ready_end_the_job() -> None:
    shards = queue(5)
    shards.take("a", 0)  # it is ready
    for number in range(STARTS * 2 - 1):
        shards.join("b", f"process {number}")
    assert shards.stopped is None
    shards.note_start_error("no GPU")
    shards.join("b", "last")
    assert str(shards.stopped).endswith("an actor could not start: no GPU")


def test_a_process_that_gets_ready_forgives_those_before() -> None:
    shards = queue(50)
    for number in range(10 * STARTS):
        shards.join("b", f"process {number}")
        if number % STARTS == 0:
            shards.take("b", 0)
    assert shards.stopped is None


def test_the_first_reason_to_stop_stays() -> None:
    shards = queue(5)
    shards.stop("no such model")
    shards.stop("something later")
    assert shards.over and shards.stopped == "no such model"


def simulate(shards: ShardQueue, ready: Sequence[float], seconds: Sequence[float]) -> float:
    """Runs the queue with workers that become ready at ``ready`` and take ``seconds`` per shard; when the job was over."""
    moments = [(time, worker, -1) for worker, time in enumerate(ready)]
    for worker in range(len(ready)):
        shards.join(str(worker), "only")
    while True:
        now, worker, shard = heapq.heappop(moments)
        if shard >= 0:
            shards.finish(str(worker), shard, now)
        turn = shards.take(str(worker), now)
        if turn.over:
            return now
        pause = seconds[worker] if turn.shard is not None else 0.01
        heapq.heappush(moments, (now + pause, worker, -1 if turn.shard is None else turn.shard))


def test_equal_workers_make_equal_numbers() -> None:
    shards = ShardQueue(range(403))
    simulate(shards, [0.0] * 8, [0.5] * 8)
    assert sum(shards.made.values()) == 403 and max(shards.made.values()) - min(shards.made.values()) <= 2


def test_late_starts_cost_what_they_must() -> None:
    ready = [0.0, 0.5, 1.1, 1.9, 2.2, 3.0, 3.3, 4.0]
    ideal = (400 * 0.5 + sum(ready)) / 8
    assert simulate(ShardQueue(range(400)), ready, [0.5] * 8) <= ideal + 0.5


def test_a_slow_worker_holds_up_the_end_by_one_shard_of_the_others_at_most() -> None:
    shards = ShardQueue(range(100))
    ended = simulate(shards, [0.0] * 4, [1.0, 1.0, 1.0, 3.0])
    assert ended <= 100 / (3 + 1 / 3) + 2.01  # one shard until it is noticed, one to make it again
    assert shards.made["3"] in (9, 10)


def test_a_stuck_worker_does_not_hold_up_the_end() -> None:
    assert simulate(ShardQueue(range(40)), [0.0] * 4, [1.0, 1.0, 1.0, 1e9]) < 20


@given(st.lists(st.sampled_from(["take", "finish", "fail", "die", "late"]), max_size=200), st.randoms())
def test_whatever_happens_each_shard_is_finished_once_or_lost(steps: list[str], random: object) -> None:
    shards = ShardQueue(range(6), deadline=1)
    held: dict[str, int] = {}
    finished: list[int] = []
    for now, step in enumerate(steps):
        worker = random.choice("abc")  # type: ignore[attr-defined]
        if step == "take" and worker not in held:
            turn = shards.take(worker, 10.0 * now)
            if turn.shard is not None:
                assert turn.shard not in finished
                held[worker] = turn.shard
        elif step == "finish" and worker in held:
            shard = held.pop(worker)
            if shards.finish(worker, shard, 10.0 * now):
                finished.append(shard)
        elif step == "fail" and worker in held:
            shards.fail(worker, held.pop(worker), "raised")
        elif step == "die":
            held.pop(worker, None)
            shards.join(worker, f"{now}")
        elif step == "late":
            shards.overdue(10.0 * now)
        assert len(finished) == len(set(finished)) == sum(shards.made.values())
        assert not set(finished) & shards.lost.keys()
    if shards.over and shards.stopped is None:
        assert set(finished) | shards.lost.keys() == set(range(6))
