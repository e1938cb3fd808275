"""The queue that shards are pulled from, as sequences of calls: who gets what, and what failures do."""

import heapq
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_dit.runtime.shard_queue import (
    HOPELESS,
    LEAST_DEADLINE,
    LEAST_REST,
    STARTS,
    TRIES,
    Failure,
    Median,
    ShardQueue,
    Turn,
)

OVER = Turn(over=True)
ASK_AGAIN = Turn()


def queue(shards: int, *, workers: str = "ab", deadline: float | None = None) -> ShardQueue:
    made = ShardQueue(range(shards), deadline=deadline)
    for worker in workers:
        made.join(worker, "first")
    return made


def test_each_worker_gets_what_nobody_has_begun() -> None:
    shards = queue(3)
    assert [shards.take(worker, 0).shard for worker in "ab"] == [0, 1]
    assert shards.finish("a", 0, 1)
    assert shards.take("a", 1).shard == 2
    assert shards.finish("b", 1, 1)
    assert not shards.over
    assert shards.finish("a", 2, 2)
    assert shards.over
    assert shards.take("b", 2) == OVER
    assert shards.made == {"a": 2, "b": 1}


@given(st.lists(st.floats(0, 1e6)))
def test_the_median_is_the_one_in_the_middle(numbers: list[float]) -> None:
    median = Median()
    assert median.value is None
    for count, number in enumerate(numbers, 1):
        median.add(number)
        assert median.value == sorted(numbers[:count])[count // 2]


def test_of_many_workers_those_without_work_ask_less_often() -> None:
    few, many = ShardQueue(range(1)), ShardQueue(range(1))
    for number in range(500):
        many.join(str(number), "first")
        many.take(str(number), 0)
    few.join("a", "first")
    few.take("a", 0)
    assert few.take("a", 0, lane=1).wait == 0.2
    assert many.take("499", 0, lane=1).wait == 5.0
    assert 3 * 500 / many.take("499", 0, lane=1).wait <= 300  # calls a second, with three lanes each


def test_it_is_ready_once_a_worker_has_asked_for_work() -> None:
    shards = ShardQueue(range(2))
    shards.join("a", "first")
    assert not shards.ready, "until then a model that is not there ends the job"
    shards.take("a", 0)
    assert shards.ready


def test_a_worker_that_asks_again_holds_nothing() -> None:
    """The answer that gave it a shard was lost on the way, and is no failed try."""
    shards = queue(2)
    assert shards.take("a", 0).shard == 0
    assert shards.take("a", 1).shard == 0
    assert shards.take("b", 1).shard == 1
    shards.finish("a", 0, 2)
    shards.finish("b", 1, 2)
    assert shards.over
    assert shards.made == {"a": 1, "b": 1}


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
    assert (failure.shard, failure.failures) == (0, 1)
    assert "died" in failure.cause
    assert [shards.take("b", 0).shard, shards.take("a", 0).shard] == [1, 0]


def test_a_shard_is_tried_three_times_after_those_that_wait_and_then_given_up() -> None:
    shards = queue(2, workers="a")
    tried: list[int] = []
    while (shard := shards.take("a", 0).shard) is not None:
        tried.append(shard)
        if shard == 1:
            shards.finish("a", 1, 1)
        else:
            failure = shards.fail("a", 0, f"cause {len(tried)}", 0)
            assert failure is not None
            assert failure.failures == tried.count(0)
    assert tried == [0, 1, 0, 0]
    assert TRIES == 3
    assert shards.lost == {0: "cause 4"}
    assert shards.over
    assert shards.stopped is None
    assert shards.made == {"a": 1}


def test_a_shard_that_raised_on_a_worker_is_left_to_the_others_for_a_while() -> None:
    shards = queue(2, workers="abc")
    assert [shards.take(worker, 0).shard for worker in "ab"] == [0, 1]
    shards.fail("a", 0, "CUDA error", 0)
    assert shards.take("a", LEAST_REST - 0.1) == ASK_AGAIN
    assert shards.take("a", LEAST_REST).shard == 0, "the others may be busy for long, or gone for good"
    shards.fail("a", 0, "CUDA error", LEAST_REST)
    assert shards.take("c", LEAST_REST).shard == 0


def test_a_shard_that_raises_on_all_is_tried_at_once() -> None:
    shards = queue(1)
    for worker in "aba":
        assert shards.take(worker, 0).shard == 0
        shards.fail(worker, 0, "not a number", 0)
    assert shards.lost.keys() == {0}


def test_one_broken_worker_loses_nothing() -> None:
    shards = ShardQueue(range(100))
    for worker in ("broken", "b", "c", "d"):
        shards.join(worker, "only")
    due: list[tuple[float, str]] = [(0.0, worker) for worker in ("broken", "b", "c", "d")]
    held: dict[str, int] = {}
    while not shards.over:
        now, worker = heapq.heappop(due)
        if worker in held:
            shards.finish(worker, held.pop(worker), now)
        turn = shards.take(worker, now)
        if turn.shard is not None and worker == "broken":
            shards.fail(worker, turn.shard, "CUDA error", now)
        elif turn.shard is not None:
            held[worker] = turn.shard
        heapq.heappush(due, (now + (0.1 if worker == "broken" else 60.0), worker))
    assert shards.stopped is None
    assert not shards.lost
    assert sum(shards.made.values()) == 100


def test_the_deadline_is_a_setting() -> None:
    shards = queue(1, deadline=4)
    shards.take("a", 10)
    assert shards.overdue(14) == ([], [])
    workers, (failure,) = shards.overdue(14.1)
    assert workers == ["a"]
    assert "not finished within 4 s" in failure.cause
    assert "--shard-deadline" in failure.cause
    assert shards.take("b", 15).shard == 0
    assert shards.fail("a", 0, "killed", 15) is None  # it holds nothing any more


@pytest.mark.parametrize(("seconds", "allowed"), [(1, LEAST_DEADLINE), (60, 20 * 60)])
def test_by_default_the_deadline_follows_the_median(seconds: float, allowed: float) -> None:
    shards = queue(4, workers="a")
    for shard, took in enumerate((seconds / 2, seconds, 100 * seconds)):
        shards.take("a", 0)
        shards.finish("a", shard, took)
    shards.take("a", 0)
    assert shards.overdue(allowed) == ([], [])
    assert shards.overdue(allowed + 1)[0] == ["a"]


def test_a_job_of_slow_shards_is_not_taken_for_a_stuck_one() -> None:
    """Nothing is finished yet, and all have timed out: all may take twice as long, then four times."""
    shards = queue(500, workers="abcd")
    now, seconds, ended = 0.0, 50 * 60.0, 0
    while not any(shards.made.values()):
        held = {worker: shards.take(worker, now).shard for worker in "abcd"}
        assert None not in held.values()
        assert shards.stopped is None
        assert not shards.lost
        allowed = LEAST_DEADLINE * 2**ended
        if allowed >= seconds:
            for worker, shard in held.items():
                shards.finish(worker, shard or 0, now + seconds)
            break
        assert shards.overdue(now + allowed) == ([], [])
        now += allowed + 1
        assert sorted(shards.overdue(now)[0]) == list("abcd")
        ended += 1
        for worker in "abcd":
            assert shards.take(worker, now) == ASK_AGAIN  # its process is being ended
            shards.join(worker, f"process {ended}")
    assert ended == 2
    assert shards.take("a", now + seconds).shard is not None


def test_a_worker_that_finishes_past_its_deadline_has_finished() -> None:
    shards = queue(2, workers="abc", deadline=4)
    shards.take("a", 0)
    shards.overdue(5)
    assert shards.finish("a", 0, 6)
    assert shards.made["a"] == 1
    assert shards.take("b", 6).shard == 1
    assert shards.take("c", 6).shard is None  # 0 waited to be tried again, and is not
    assert shards.finish("b", 1, 7)
    assert shards.over


def test_two_that_are_stuck_with_the_same_shard_are_both_ended() -> None:
    shards = queue(2, workers="abc", deadline=4)
    shards.take("c", 0)
    shards.finish("c", 0, 1)
    shards.take("a", 1)
    shards.overdue(6)
    shards.join("a", "second")
    assert shards.take("a", 10).shard == shards.take("b", 12).shard == 1
    assert shards.take("c", 14) == ASK_AGAIN  # two at it, and one has failed: three tries
    workers, failures = shards.overdue(20)
    assert workers == ["a", "b"]
    assert [failure.failures for failure in failures] == [2, TRIES]
    assert shards.over
    assert shards.lost.keys() == {1}


def test_a_given_up_shard_that_is_finished_after_all_is_not_lost() -> None:
    shards = queue(1, deadline=4, workers="abc")
    for worker in "abc":
        shards.take(worker, 0)
        shards.overdue(5)
    assert shards.lost.keys() == {0}
    assert shards.over
    assert shards.finish("b", 0, 6)
    assert not shards.lost


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
    assert shards.finish("a", 1, 15)
    assert not shards.finish("b", 1, 30)
    assert shards.fail("b", 1, "late", 30) is None
    assert shards.finish("c", 2, 30)
    assert shards.over
    assert shards.made == {"a": 2, "b": 0, "c": 1}


@pytest.mark.parametrize("last", ["finishes", "fails"])
def test_tries_that_fail_beside_another_leave_the_shard_to_that_one(last: str) -> None:
    shards = queue(2, workers="abcd")
    shards.take("a", 0)
    shards.take("b", 0)
    shards.finish("a", 0, 1)
    for now, worker in enumerate("ac"):
        assert shards.take(worker, 2 + now).shard == 1
        assert shards.fail(worker, 1, "no memory", 2 + now) is not None
    assert shards.take("d", 9) == ASK_AGAIN
    assert not shards.over, "b may be about to finish"
    if last == "finishes":
        assert shards.finish("b", 1, 9)
        assert not shards.lost
    else:
        shards.join("b", "another")
        assert shards.lost.keys() == {1}
    assert shards.over


def test_a_job_in_which_nothing_works_ends_early() -> None:
    shards = queue(10 * HOPELESS)
    for number in range(HOPELESS):
        for worker in "ab":
            assert not shards.over
            shards.fail(worker, shards.take(worker, number).shard or 0, f"disk full {number}", number)
    assert shards.over
    assert shards.take("a", 0) == OVER
    assert f"disk full {HOPELESS - 1}" in str(shards.stopped)


def test_lost_machines_and_timeouts_are_no_sign_of_a_hopeless_job() -> None:
    shards = queue(10 * HOPELESS, deadline=10)
    for number in range(2 * HOPELESS):
        for worker in "ab":
            shards.take(worker, 100 * number)
        shards.join("a", f"preempted {number}")
        shards.overdue(100 * number + 50)
        shards.join("b", f"ended {number}")
    assert shards.stopped is None


def test_a_few_bad_shards_do_not_end_it() -> None:
    shards = queue(10 * HOPELESS, workers="a")
    for number in range(3 * HOPELESS):
        shard = shards.take("a", number).shard
        assert shard is not None
        if number % 2:
            shards.fail("a", shard, "bad", number)
        else:
            shards.finish("a", shard, number)
    assert shards.stopped is None


def test_processes_that_never_get_ready_end_the_job() -> None:
    shards = queue(5)
    shards.take("a", 0)  # it is ready, and finishes nothing
    for number in range(STARTS * 2 - 1):
        shards.join("b", f"process {number}")
    assert shards.stopped is None
    shards.note_start_error("no GPU")
    shards.join("b", "last")
    assert str(shards.stopped).endswith("an actor could not start: no GPU")


@pytest.mark.parametrize("forgiven_by", ["a process that gets ready", "a shard that is finished"])
def test_starts_that_fail_now_and_then_do_not_end_it(forgiven_by: str) -> None:
    shards = queue(100)
    for number in range(20 * STARTS):
        shards.join("b", f"process {number}")
        if number % STARTS == 0 and forgiven_by == "a process that gets ready":
            shards.take("b", 0)
        elif number % STARTS == 0:
            shards.finish("a", shards.take("a", 0).shard or 0, 1)
    assert shards.stopped is None


def test_the_first_reason_to_stop_stays() -> None:
    shards = queue(5)
    shards.stop("no such model")
    shards.stop("something later")
    assert shards.over
    assert shards.stopped == "no such model"


def test_a_worker_gets_shards_ahead_only_while_enough_wait_for_the_others() -> None:
    shards = queue(5, workers="abc")
    assert shards.take("a", 0, lane=0).shard == 0
    assert shards.take("a", 0, lane=1).shard == 1
    assert shards.take("a", 0, lane=2).shard == 2, "two are left for the other two"
    assert shards.take("b", 0, lane=0).shard == 3
    assert shards.take("b", 0, lane=1) == ASK_AGAIN
    assert shards.take("c", 0, lane=0).shard == 4
    shards.finish("a", 0, 1)
    assert shards.take("a", 100, lane=0) == ASK_AGAIN, "nor does it make again what others hold"
    assert shards.take("a", 100, lane=1) == ASK_AGAIN, "its answer was lost, so that it has begun nothing"
    shards.finish("c", 4, 101)
    assert shards.take("c", 101, lane=0).shard == 1


def test_one_worker_alone_always_has_shards_ahead() -> None:
    shards = queue(3, workers="a")
    assert [shards.take("a", 0, lane=lane).shard for lane in range(3)] == [0, 1, 2]


def test_what_was_beside_a_deadly_shard_is_not_lost_with_it() -> None:
    shards = queue(6, workers="ab")
    deaths = 0
    held: dict[tuple[str, int], int] = {}
    for now in range(100):
        for worker, lane in (("a", 0), ("a", 1), ("a", 2), ("b", 0)):
            turn = shards.take(worker, now, lane)
            if turn.shard is not None:
                held[worker, lane] = turn.shard
        for worker in "ab":
            mine = {place: shard for place, shard in held.items() if place[0] == worker}
            if 1 in mine.values():
                deaths += 1
                shards.join(worker, f"{now}")
            for shard in set(mine.values()) if 1 not in mine.values() else ():
                shards.finish(worker, shard, now + 0.5)
            held = {place: shard for place, shard in held.items() if place not in mine}
    assert shards.lost.keys() == {1}
    assert deaths == 1 + TRIES, "the first, of several at once, counts for none of them"
    assert sum(shards.made.values()) == 5


def test_a_try_is_what_a_shard_did_by_itself() -> None:
    shards = queue(6, workers="a")
    assert [shards.take("a", 0, lane=lane).shard for lane in range(2)] == [0, 1]
    failure = shards.fail("a", 0, "not a number", 0)
    assert failure == Failure(0, 1, "not a number")
    assert shards.take("a", 0, lane=0).shard == 2
    together = shards.join("a", "second")
    assert {(failure.shard, failure.failures, failure.counts) for failure in together} == {
        (1, 0, False),
        (2, 0, False),
    }
    for shard in (3, 4, 5, 0):
        assert shards.take("a", 1).shard == shard
        shards.finish("a", shard, 1)
    suspect = shards.take("a", 2)
    assert suspect == Turn(suspect.shard, suspect=True)
    (alone,) = shards.join("a", "third")
    assert (alone.shard, alone.failures, alone.counts) == (suspect.shard, 1, True)


def test_what_a_process_that_ends_itself_held_is_next_and_not_suspect() -> None:
    shards = queue(4, workers="a")
    assert [shards.take("a", 0, lane=lane).shard for lane in range(2)] == [0, 1]
    shards.fail("a", 0, "CUDA error", 0)
    shards.leave("a")
    assert shards.take("a", 0, lane=0) == ASK_AGAIN, "its process ends"
    assert shards.join("a", "second") == []
    assert shards.take("a", 0) == Turn(1)


def test_a_stuck_process_is_ended_with_all_it_held_and_nothing_else_is_lost() -> None:
    shards = queue(4, workers="a", deadline=5)
    assert [shards.take("a", 0, lane=lane).shard for lane in range(2)] == [0, 1]
    workers, failures = shards.overdue(5.1)
    assert workers == ["a"]
    assert sorted(failure.shard for failure in failures) == [0, 1]
    assert shards.join("a", "second") == []
    assert [shards.take("a", 6, lane=lane).shard for lane in range(2)] == [2, 3]
    shards.finish("a", 2, 7)
    shards.finish("a", 3, 7)
    assert shards.take("a", 8, lane=0).shard == 0
    assert shards.take("a", 8, lane=1) == ASK_AGAIN, "either may be to blame: each is made alone"


def simulate(shards: ShardQueue, ready: Sequence[float], seconds: Sequence[float]) -> float:
    """Runs the queue with workers that become ready at ``ready`` and take ``seconds`` per shard.

    When the job was over.
    """
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
    assert sum(shards.made.values()) == 403
    assert max(shards.made.values()) - min(shards.made.values()) <= 2


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
    held: dict[tuple[str, int], int] = {}
    finished: list[int] = []
    loading: set[str] = set()  # none dies there: after a few such deaths in a row the queue rightly gives up
    for now, step in enumerate(steps):
        worker, lane = random.choice("abc"), random.choice((0, 1, 2))  # type: ignore[attr-defined]
        if step == "take":
            loading.discard(worker)
            held.pop((worker, lane), None)
            turn = shards.take(worker, 10.0 * now, lane)
            if turn.shard is not None:
                assert turn.shard not in finished
                held[worker, lane] = turn.shard
        elif step == "finish" and (worker, lane) in held:
            shard = held.pop((worker, lane))
            if shards.finish(worker, shard, 10.0 * now):
                finished.append(shard)
        elif step == "fail" and (worker, lane) in held:
            shards.fail(worker, held.pop((worker, lane)), "raised", 10.0 * now)
        elif step == "die" and worker not in loading:
            loading.add(worker)
            held = {place: shard for place, shard in held.items() if place[0] != worker}
            shards.join(worker, f"{now}")
        elif step == "late":
            shards.overdue(10.0 * now)
        assert len(finished) == len(set(finished)) == sum(shards.made.values())
        assert not set(finished) & shards.lost.keys()
    for now in range(1000):  # two good workers bring it to its end, whatever has happened
        for worker in ("good", "better"):
            turn = shards.take(worker, 1e6 + 100.0 * now)
            if turn.shard is not None and shards.finish(worker, turn.shard, 1e6 + 100.0 * now):
                finished.append(turn.shard)
        shards.overdue(1e6 + 100.0 * now)
        if shards.over:
            break
    assert shards.over
    assert shards.stopped is None
    assert set(finished) | shards.lost.keys() == set(range(6))
    assert not set(finished) & shards.lost.keys()
