"""Which replica takes the next request."""

from ray_dit.serving.routing import FORGOTTEN_AFTER, Outstanding


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_replica_with_the_fewest_steps_comes_first():
    known = Outstanding()
    known.give("long", "a", 2500)
    for request in ("one", "two", "three"):
        known.give(request, "b", 25)
    assert known.ranked("ab") == ["b", "a"]  # by requests it would be the other way round
    known.end("long")
    assert known.ranked("ab") == ["a", "b"]
    known.end("never given")


def test_equal_replicas_take_turns():
    known = Outstanding()
    chosen = []
    for number in range(6):
        chosen.append(known.ranked("abc")[0])
        known.give(str(number), chosen[-1], 10)
        known.end(str(number))
    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_a_request_given_again_counts_where_it_is_now():
    known = Outstanding()
    known.give("one", "a", 100)
    known.give("one", "b", 100)
    assert known.ranked("ab") == ["a", "b"]
    assert known.ranked("b") == ["b"]


def test_new_replicas_come_first_and_gone_ones_leave_nothing():
    known = Outstanding()
    known.give("one", "a", 100)
    assert known.ranked("ac") == ["c", "a"]
    known.give("two", "c", 50)
    assert known.ranked(["d"]) == ["d"]
    assert set(known._turns) == {"d"}


def test_what_never_ended_is_forgotten():
    clock = Clock()
    known = Outstanding(clock)
    known.give("lost", "a", 2500)
    clock.now = FORGOTTEN_AFTER - 1
    known.give("new", "b", 25)
    assert known.ranked("ab") == ["b", "a"]
    clock.now += 2
    assert known.ranked("ab") == ["a", "b"]


def test_requests_are_spread_by_steps_and_not_by_requests():
    known = Outstanding()
    given = {"a": 0, "b": 0}
    for number, steps in enumerate([2500, 10, 10, 10, 500, 500, 500, 500, 500, 10]):
        replica = known.ranked("ab")[0]
        given[replica] += steps
        known.give(str(number), replica, steps)
    assert abs(given["a"] - given["b"]) <= 500
