"""The rules alone, without threads, clock or network: sizes of calls, who is let in, who takes a step."""

import random
import time

import pytest

from ray_dit.config import SamplerConfig
from ray_dit.serving.engine.policy import PATIENCE, Schedule, StepCurve, count_rows, patience, row_limit
from ray_dit.serving.engine.tickets import Observer, QueueFull, Row, Ticket, Work

FLAT = StepCurve([1, 128], [1.0, 1.0])
LINEAR = StepCurve([1, 128], [1.0, 128.0])


def ticket(images: int = 1, steps: int = 10, guided: int = 0, seconds: float | None = None) -> Ticket:
    """One whose images take two rows in their first ``guided`` steps."""
    return Ticket(
        Work(labels=(0,) * images, sampler=SamplerConfig(), seed=0, seconds=seconds),
        table=0,
        guided=[step < guided for step in range(steps)],
        on_event=lambda event: None,
        on_cancel=lambda ticket: None,
        observer=Observer(),
    )


def schedule(
    *tickets: Ticket, curve: StepCurve = FLAT, rows: int = 64, slots: int = 64, queued: int = 64
) -> Schedule:
    """One in which these are let in."""
    made = Schedule(curve, max_step_rows=rows, slots=slots, max_queued=queued)
    for one in tickets:
        made.enter(one)
    made.admit()
    return made


def step(made: Schedule) -> list[Row]:
    """What the engine does with a choice: its images take a step; finished ones are out at once."""
    chosen = list(made.choose())
    for row in chosen:
        if not row.begun:
            row.ticket.begin(row)
        row.step += 1
        if row.step == row.ticket.num_steps:
            row.ticket.rows.remove(row)
            row.ticket.undelivered -= 1
            made.changed = True
            if not row.ticket.undelivered:
                made.take_out(row.ticket)
    return chosen


# ---- the curve


def test_a_padded_call_takes_as_long_as_the_size_it_is_padded_to():
    curve = StepCurve([1, 2, 4], [1.0, 2.0, 4.0], padded=True)
    assert [curve.seconds(rows) for rows in (1, 2, 3, 4, 8)] == [1, 2, 4, 4, 8]
    assert curve.rows_within(3.9) == 2


def test_a_device_with_constant_cost_takes_large_steps_and_a_linear_one_small_ones():
    constant = StepCurve([1, 2, 4, 8, 16], [1.0, 1.0, 1.0, 1.01, 1.02])
    linear = StepCurve([1, 2, 4, 8, 16], [1.0, 2.0, 4.0, 8.0, 16.0])
    assert constant.best_rows() == 16
    assert linear.best_rows() == 2


def test_times_between_and_beyond_the_points():
    curve = StepCurve([2, 4], [1.0, 3.0])
    assert [curve.seconds(rows) for rows in (1, 2, 3, 4, 8)] == [1.0, 1.0, 2.0, 3.0, 6.0]
    assert [curve.rows_within(seconds) for seconds in (0.5, 2.0, 2.9, 100)] == [1, 3, 3, 4]


def test_a_point_that_came_out_faster_than_a_smaller_one_is_noise():
    assert StepCurve([1, 2], [2.0, 1.0]).seconds(2) == 2.0


def test_curves_need_rising_rows():
    with pytest.raises(ValueError, match="rising"):
        StepCurve([2, 1], [1.0, 1.0])


# ---- the rules


def test_a_ticket_is_due_by_its_work():
    assert patience(1, 10, FLAT, 64) == PATIENCE * 10
    assert patience(4, 10, LINEAR, 64) == PATIENCE * 40
    assert patience(128, 10, FLAT, 64) == PATIENCE * 20  # two calls for each of its steps
    short, long = ticket(steps=5), ticket(images=3, steps=50)
    schedule(short, long, curve=LINEAR)
    assert short.due - short.submitted == pytest.approx(PATIENCE * 5)
    assert long.due - long.submitted == pytest.approx(PATIENCE * 150)


def test_a_call_grows_until_a_ticket_would_be_below_its_share():
    assert row_limit([1, 10], FLAT, 64) == 64  # rows cost nothing
    assert row_limit([1, 10], LINEAR, 64) == 2  # twice the small one's own call
    assert row_limit([2, 10, 10], LINEAR, 64) == 6
    assert row_limit([10], LINEAR, 64) == 10
    assert row_limit([10], LINEAR, 4) == 4
    assert row_limit([1], LINEAR, 64) == 2  # a guided image fits in any case


def test_those_due_first_are_let_in_and_others_wait():
    long, short, middle = ticket(steps=100), ticket(steps=5), ticket(steps=20)
    made = schedule(long, short, middle, slots=2)
    assert made.running == [short, middle]
    assert made.waiting == [long]
    made.take_out(short)
    made.admit()
    assert made.running == [middle, long]
    assert made.waiting == []


def test_beyond_free_slots_so_many_wait_and_no_more():
    made = Schedule(FLAT, max_step_rows=8, slots=2, max_queued=3)
    for _ in range(2 + 3):
        made.enter(ticket())
    with pytest.raises(QueueFull) as caught:
        made.enter(ticket())
    assert 1 <= caught.value.retry_after <= 60
    assert made.load().queued == 5
    assert made.load().running == 0
    made.admit()
    assert made.load().queued == 3
    assert made.load().running == 2


def test_the_ticket_due_first_has_its_rows_and_others_what_it_leaves():
    long, short = ticket(images=10, steps=100), ticket(images=3, steps=10)
    made = schedule(long, short, rows=8)
    assert [row.ticket for row in made.choose()] == [short] * 3 + [long] * 5


def test_guided_images_take_two_rows_and_are_not_cut_in_half():
    made = schedule(ticket(images=5, guided=10), rows=7)
    chosen = made.choose()
    assert len(chosen) == 3
    assert count_rows(chosen) == 6


def test_a_quarter_of_the_slots_is_kept_for_first_images():
    long = [ticket(images=10, steps=100) for _ in range(4)]
    made = schedule(*long, slots=16)
    step(made)
    assert sum(one.resident for one in long) == 12
    assert all(one.resident for one in long)
    late = ticket()
    made.enter(late)
    made.admit()
    assert any(row.ticket is late for row in made.choose())


def test_a_choice_stands_until_something_changes_or_guidance_ends():
    first, second = ticket(steps=10, guided=2), ticket(steps=90)
    made = schedule(first, second, rows=2)
    assert made.choose() is made.choose()
    assert [len(step(made)) for _ in range(4)] == [1, 1, 2, 2]  # the row that guidance leaves is the second's
    third = ticket(steps=1)
    made.enter(third)
    made.admit()
    assert step(made)[0].ticket is third


def test_who_is_too_late_or_has_a_reason_ends_and_frees_slots():
    late, cancelled, other = ticket(images=2, seconds=5), ticket(seconds=500), ticket()
    made = schedule(late, cancelled, other, slots=4)
    step(made)
    cancelled.reason = "cancelled"
    assert made.next_deadline() == late.submitted + 5
    assert set(made.take_ending(late.submitted + 6)) == {late, cancelled}
    assert (late.reason, cancelled.reason, other.reason) == ("deadline", "cancelled", None)
    assert made.tickets == [other]
    assert made.load().images == 1
    assert [row.ticket for row in made.choose()] == [other]
    assert made.next_deadline() is None
    assert made.take_ending(late.submitted + 6) == []


def test_calls_have_the_size_that_the_profile_now_says():
    made = schedule(ticket(images=20), rows=16)
    assert count_rows(made.choose()) == 16
    made.follow(FLAT, 8)
    assert count_rows(made.choose()) == made.load().max_step_rows == 8


def test_one_call_may_try_another_size():
    made = schedule(ticket(images=20), rows=8)
    for rows in (16, 4):
        made.try_rows(rows)
        assert [count_rows(step(made)) for _ in range(3)] == [rows, 8, 8]
    made.try_rows(32)  # there are not as many
    assert count_rows(made.choose()) == 8


@pytest.mark.parametrize("curve", [FLAT, LINEAR])
@pytest.mark.parametrize("seed", range(5))
def test_in_any_mixture_all_are_done_within_the_bounds(curve: StepCurve, seed: int):
    rng = random.Random(seed)
    made = Schedule(curve, max_step_rows=9, slots=8, max_queued=100)
    coming = [
        ticket(images=rng.randint(1, 12), steps=(steps := rng.randint(1, 30)), guided=rng.randint(0, steps))
        for _ in range(40)
    ]
    everyone, steps = list(coming), 0
    while coming or made.tickets:
        if coming and rng.random() < 0.3:
            made.enter(coming.pop())
        made.admit()
        chosen = made.choose()
        assert not made.tickets or chosen  # nobody waits while nothing is done
        assert count_rows(chosen) <= 9
        assert len(set(chosen)) == len(chosen)
        step(made)
        assert sum(one.resident for one in everyone) <= 8
        steps += 1
        assert steps < 20_000
    assert all(one.undelivered == 0 and one.begun == len(one.work.labels) for one in everyone)


def run_until(made: Schedule, begun: float, curve: StepCurve) -> dict[Ticket, float]:
    """Seconds after which each ticket is out, each call taking what the curve says."""
    taken, out = 0.0, {}
    while made.tickets:
        made.admit()
        there = made.tickets
        taken += curve.seconds(count_rows(made.choose()))
        step(made)
        out |= {one: begun + taken - one.submitted for one in there if one not in made}
    return out


def test_what_the_work_before_it_makes_too_late_is_refused_at_once():
    made = schedule(curve=LINEAR, rows=1)
    begun = time.monotonic()
    taken, waits = [], []
    for _ in range(9):  # of 10 s of work each, all of them due in 25 s
        try:
            made.enter(one := ticket(steps=10, seconds=25))
            taken.append(one)
        except QueueFull as refused:
            waits.append(refused.retry_after)
    assert len(taken) == 2
    assert all(4 < wait <= 5 for wait in waits)  # then the first will be out, and another fits
    out = run_until(made, begun, LINEAR)
    assert all(out[one] <= 25 for one in taken)


@pytest.mark.parametrize("seed", range(20))
def test_none_is_refused_that_could_have_been_done(seed):
    """Tickets that come together, with a deadline or two: the best any order could do is the bound."""
    rng = random.Random(seed)
    curve = rng.choice([FLAT, LINEAR, StepCurve([1, 8, 64], [1.0, 2.0, 9.0])])
    made = schedule(curve=curve, rows=curve.best_rows(), slots=1000, queued=1000)
    taken: list[Ticket] = []
    for _ in range(40):
        steps = rng.randint(1, 50)
        one = ticket(rng.randint(1, 4), steps, guided=rng.randint(0, steps), seconds=rng.uniform(50, 900))
        try:
            made.enter(one)
            taken.append(one)
        except QueueFull:
            before = [other for other in taken if (other.due, other.number) < (one.due, one.number)]
            rows = sum(other.row_steps for other in [*before, one])
            best = max(count / curve.seconds(count) for count in curve.rows)
            assert rows / best > one.work.seconds * 0.97
    out = run_until(made, taken[0].submitted, curve)
    assert set(out) == set(taken)


def test_work_that_is_due_later_or_done_makes_nobody_late():
    long = ticket(images=4, steps=250)
    made = schedule(long, curve=LINEAR, rows=1)
    made.enter(ticket(steps=10, seconds=11))  # passes the long one
    for _ in range(200):
        step(made)
    assert long.row_steps < 1000
    late = ticket(images=4, steps=250, seconds=1700)
    with pytest.raises(QueueFull) as caught:
        made.enter(late)
    assert caught.value.retry_after == min(max(0.97 * (long.row_steps + 1010) - 1700, 1), 60)


def test_one_that_is_too_late_even_alone_is_let_in():
    made = schedule(curve=LINEAR, rows=1)
    made.enter(ticket(steps=10, seconds=5))
    assert len(made.waiting) == 1


def test_rows_left_count_guidance_and_steps_taken():
    one = ticket(images=3, steps=10, guided=4)
    made = schedule(one)
    assert one.row_steps == 3 * 14
    step(made)
    assert one.row_steps == 3 * 12
    for _ in range(9):
        step(made)
    assert one.row_steps == 0
