"""The engine with fake models: sharing, joining, cancelling, deadlines, failures."""

import queue
import time

import numpy as np
import pytest
import torch

from ray_dit.config.serve import EngineConfig
from ray_dit.core.sampling import Rows
from ray_dit.serving.engine.tickets import Closed, Done, Failed, Observer, QueueFull
from tests.serving.engine.clients import Client, expected, held_engine, until, work
from tests.support.fakes import NUM_CLASSES, FakeModel


def test_images_are_those_of_bulk_sampling_in_any_mixture(make_engine):
    model = FakeModel()
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=7, slots=5, decode_batch=3))
    rng = np.random.default_rng(0)
    asked_for = [
        work(
            rng.integers(0, NUM_CLASSES, rng.integers(1, 6)).tolist(),
            steps=int(rng.integers(1, 15)),
            scale=float(rng.choice([1.0, 2.0, 4.5])),
            name=str(rng.choice(["ddpm", "ddim", "dpmpp", "unipc"])),
            seed=int(rng.integers(0, 2**62)),
        )
        for _ in range(30)
    ]
    model.gate.clear()
    clients = [Client(engine, asked) for asked in asked_for]
    model.gate.set()
    for client, asked in zip(clients, asked_for, strict=True):
        assert isinstance(client.last, Done)
        got, want = client.images(), expected(FakeModel(), asked)
        assert sorted(got) == list(range(len(asked.labels)))
        for index, pixels in got.items():
            assert np.abs(pixels.astype(int) - want[index].astype(int)).max() <= 1
    assert max(map(len, model.calls)) <= 7
    assert np.mean([len(call) for call in model.calls]) > 5  # they did share calls


def test_one_call_holds_tickets_of_other_steps_and_scales(make_engine):
    model = FakeModel()
    model.gate.clear()
    engine = make_engine(model)
    first = Client(engine, work([1, 1], steps=9))
    second = Client(engine, work([2], steps=3, scale=1.0, name="ddpm"))
    time.sleep(0.05)
    model.gate.set()
    first.wait(), second.wait()
    together = [call for call in model.calls if {1, 2} <= set(call)]
    assert len(together) == 3
    assert sorted(together[0]) == [1, 1, 2, NUM_CLASSES, NUM_CLASSES]


def test_a_queue_holds_no_more_while_a_step_runs(make_engine):
    engine, _ = held_engine(make_engine, FakeModel(), slots=4, max_queued=2)
    for _ in range(3 + 2):  # three slots are free, two may wait
        Client(engine, work())
    with pytest.raises(QueueFull):
        Client(engine, work())


def test_a_full_queue_says_when_to_come_again(make_engine):
    engine, _ = held_engine(make_engine, FakeModel(), slots=1, max_queued=1)
    Client(engine, work())
    with pytest.raises(QueueFull) as caught:
        Client(engine, work())
    assert 1 <= caught.value.retry_after <= 120


def test_memory_that_is_short_between_calls_loses_no_image(make_engine, monkeypatch):
    model = FakeModel(a=0.001)
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=8))
    first = Client(engine, work([1], steps=250, scale=1.0))
    until(lambda: model.calls)
    whole, failures = Rows.cat, iter([True])

    def short_once(parts):
        if next(failures, False):
            raise torch.OutOfMemoryError
        return whole(parts)

    monkeypatch.setattr(Rows, "cat", staticmethod(short_once))
    second = Client(engine, work([2] * 4, steps=20, scale=1.0))
    assert isinstance(second.last, Done)
    assert isinstance(first.last, Done)
    assert len(second.images()) == 4
    assert next(failures, None) is None


def test_cancel_frees_the_slots_within_one_step(make_engine):
    model = FakeModel(a=0.005)
    engine = make_engine(model)
    clients = [Client(engine, work([i], steps=200, scale=1.0)) for i in range(8)]
    until(lambda: model.calls and len(model.calls[-1]) == 8)
    for client in clients[::2]:
        client.ticket.cancel()
    at = len(model.calls)
    until(lambda: len(model.calls) >= at + 3)
    assert len(model.calls[at + 2]) == 4
    assert engine.load().images == 4
    assert all(client.last == Failed("cancelled") for client in clients[::2])
    for client in clients[1::2]:
        client.ticket.cancel()


def test_a_deadline_ends_running_and_waiting_tickets(make_engine):
    model = FakeModel(a=0.01)
    engine = make_engine(model, EngineConfig(profile_seconds=0, slots=1))
    running = Client(engine, work(steps=200, seconds=0.1))
    waiting = Client(engine, work(steps=200, seconds=0.05))
    assert running.last == Failed("deadline")
    assert running.seconds < 0.5
    assert waiting.last == Failed("deadline")
    assert waiting.seconds < 0.5
    assert engine.load().images == 0


def test_a_failing_step_fails_its_tickets_and_the_engine_goes_on(make_engine):
    model = FakeModel()
    engine = make_engine(model)
    model.broken = RuntimeError("kernel trouble")
    assert Client(engine, work()).last == Failed("internal")
    model.broken = None
    assert isinstance(Client(engine, work()).last, Done)
    for _ in range(2):  # failures that are not in a row
        model.broken = RuntimeError("kernel trouble")
        assert Client(engine, work()).last == Failed("internal")
        assert Client(engine, work()).last == Failed("internal")
        model.broken = None
        assert isinstance(Client(engine, work()).last, Done)
    assert engine.healthy
    model.broken = RuntimeError("gone for good")
    for _ in range(3):
        Client(engine, work()).wait()
    assert not engine.healthy


def test_out_of_memory_makes_steps_smaller(make_engine):
    model = FakeModel()
    whole = model.guided_model.network

    def limited(x, t, y):
        if len(x) > 4:
            raise torch.OutOfMemoryError("too many rows")
        return whole(x, t, y)

    object.__setattr__(model.guided_model, "network", limited)
    engine = make_engine(model)
    assert isinstance(Client(engine, work([1] * 10)).last, Done)
    assert engine.max_step_rows <= 8
    assert max(map(len, model.calls)) <= 4


def test_close_drains_or_fails(make_engine):
    model = FakeModel(a=0.002)
    draining = make_engine(model)
    client = Client(draining, work(steps=20))
    draining.close(drain=True)
    assert isinstance(client.last, Done)
    with pytest.raises(Closed):
        Client(draining, work())
    stopping = make_engine(FakeModel(a=0.01))
    client = Client(stopping, work(steps=200))
    stopping.close()
    assert client.last == Failed("closed")


def test_an_observer_sees_steps_previews_and_ends(make_engine):
    seen: queue.Queue[tuple[str, object]] = queue.Queue()

    class Watching(Observer):
        def stepped(self, rows, seconds):
            seen.put(("step", rows))

        def previewed(self, seconds):
            seen.put(("first", seconds > 0))

        def ended(self, outcome, seconds):
            seen.put(("end", outcome))

    engine = make_engine(FakeModel(a=0.005), observer=Watching())
    Client(engine, work([1], steps=4, previews=1)).wait()
    until(lambda: ("end", "done") in seen.queue)
    events = list(seen.queue)
    assert [value for kind, value in events if kind == "step"] == [2] * 4
    assert events.count(("first", True)) == 1
