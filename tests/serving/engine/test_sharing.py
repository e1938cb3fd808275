"""Who shares the steps of a running engine, by what its fake model was called with.

The rules alone are in test_policy.
"""

import threading
import time

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.serving.engine.tickets import Done, Failed, Work
from tests.serving.engine.clients import Client, held_engine, until, work
from tests.support.fakes import NUM_CLASSES, FakeModel


def test_a_short_ticket_is_not_held_up_by_a_long_one(make_engine):
    model = FakeModel(a=0.002, b=0.002)  # a CPU's curve: rows cost
    engine = make_engine(model, EngineConfig(profile_seconds=5, max_step_rows=64))
    alone = Client(engine, work([1], steps=20)).seconds
    long = Client(engine, work([2] * 10, steps=250))
    time.sleep(0.1)
    met = Client(engine, work([1], steps=20)).seconds
    assert met <= 3 * alone
    long.ticket.cancel()
    assert long.last == Failed("cancelled")


def test_a_short_ticket_passes_a_long_one_which_has_what_it_leaves(make_engine):
    model = FakeModel(a=0.001)
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=4))
    long = Client(engine, work([2] * 10, steps=1000))
    until(lambda: model.calls)
    Client(engine, work([1], steps=10)).wait()
    places = [place for place, call in enumerate(model.calls) if 1 in call]
    assert places == list(range(places[0], places[0] + 10))  # it took part in each call
    assert all(2 in model.calls[place] for place in places)  # and the long one has the rest of each
    long.ticket.cancel()


def test_equal_tickets_are_served_in_turn(make_engine):
    model = FakeModel(a=0.001)
    model.gate.clear()
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=4))
    clients = [Client(engine, work([label] * 6, steps=20)) for label in (1, 2)]
    time.sleep(0.05)
    model.gate.set()
    for client in clients:
        client.wait()
    last = max(number for number, call in enumerate(model.calls) if 1 in call)
    assert last <= 61  # as if it were alone; the first call held what was there before the gate
    assert all(
        call.count(1) == 2 for call in model.calls[1 : last + 1]
    )  # a guided image has the null class too


def test_a_long_ticket_is_not_passed_for_ever(make_engine, monkeypatch):
    monkeypatch.setattr("ray_dit.serving.engine.policy.PATIENCE", 10)
    model = FakeModel(a=0.001)
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=2))
    long = Client(engine, work([1], steps=60))
    until(lambda: model.calls)
    busy = True

    def keep_asking() -> None:
        while busy:
            Client(engine, work([2], steps=20)).wait()

    others = [threading.Thread(target=keep_asking) for _ in range(3)]
    for other in others:
        other.start()
    try:
        assert isinstance(long.last, Done)
    finally:
        busy = False
        for other in others:
            other.join()
    before_long = max(number for number, call in enumerate(model.calls) if 1 in call) - 60
    # Passed by those who are due before it: it is after 600 ms of steps, they after 200 ms from when they
    # came.
    assert 150 < before_long < 700


def test_those_due_first_get_the_slots_that_become_free(make_engine):
    model = FakeModel(a=0.002)
    engine, first = held_engine(make_engine, model, slots=1)
    long, short = Client(engine, work([2], steps=250)), Client(engine, work([3], steps=2))
    model.gate.set()
    first.wait(), short.wait()
    of_short = [number for number, call in enumerate(model.calls) if 3 in call]
    assert len(of_short) == 2
    assert not any(2 in call for call in model.calls[: of_short[-1]])
    long.ticket.cancel()


def test_rows_that_guidance_no_longer_needs_are_given_to_others(make_engine):
    model = FakeModel(a=0.001)
    model.gate.clear()
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=2))
    early = SamplerConfig(
        name="ddim", num_inference_steps=20, guidance_scale=3.0, guidance_interval=(500.0, 1000.0)
    )
    first = Client(engine, Work(labels=(1,), sampler=early, seed=1))
    second = Client(engine, work([2], steps=100, scale=1.0))
    time.sleep(0.05)
    model.gate.set()
    first.wait()
    together = [call for call in model.calls if 1 in call]
    guided = int(model.table(early).guided.sum())
    assert 5 < guided < 15
    assert [sorted(call) for call in together] == [[1, NUM_CLASSES]] * guided + [[1, 2]] * (20 - guided)
    second.ticket.cancel()


def test_long_tickets_leave_slots_to_others(make_engine):
    model = FakeModel(a=0.001)
    engine, first = held_engine(make_engine, model, slots=16, max_step_rows=64)
    # all are there before any begins: one that comes later finds a slot kept for its first image
    long = [Client(engine, work([2] * 10, steps=250, scale=1.0)) for _ in range(4)]
    model.gate.set()
    first.wait()
    until(lambda: any(len(call) == 12 for call in model.calls))
    assert max(len(call) for call in model.calls if set(call) == {2}) == 12
    Client(engine, work([1], steps=3)).wait()
    assert not any(client.ticket.ended for client in long)
    for client in long:
        client.ticket.cancel()


def test_waiting_tickets_enter_as_slots_free(make_engine):
    model = FakeModel()
    engine = make_engine(model, EngineConfig(profile_seconds=0, slots=2))
    clients = [Client(engine, work([1, 2, 3], steps=3)) for _ in range(4)]
    assert all(isinstance(client.last, Done) for client in clients)
    assert max(map(len, model.calls)) <= 4  # two images, guided
