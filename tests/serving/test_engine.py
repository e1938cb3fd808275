"""The engine with fake models: sharing, joining, cancelling, deadlines, failures."""

import queue
import threading
import time

import numpy as np
import pytest
import torch
from fakes import NUM_CLASSES, FakeModel

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.core.sampling import Rows, TableBank, init_rows, sample
from ray_dit.serving.engine import (
    Closed,
    Done,
    Engine,
    Event,
    Failed,
    Job,
    Observer,
    Picture,
    Preview,
    QueueFull,
    preview_steps,
)

QUICK = EngineConfig(profile_seconds=0)


class Client:
    """Collects the events of a request."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.events: list[Event] = []
        self.ended_at = 0.0
        self._ended = threading.Event()
        self.started_at = time.monotonic()
        self.request = engine.submit(job, self._on_event)

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self.ended_at = time.monotonic()
            self._ended.set()

    def wait(self) -> "Client":
        assert self._ended.wait(20), "the request never ended"
        return self

    @property
    def last(self) -> Event:
        return self.wait().events[-1]

    @property
    def seconds(self) -> float:
        return self.wait().ended_at - self.started_at

    def pictures(self) -> dict[int, np.ndarray]:
        self.wait()
        return {event.index: event.pixels for event in self.events if isinstance(event, Picture)}


@pytest.fixture
def make_engine():
    engines: list[Engine] = []

    def make(model: FakeModel, config: EngineConfig = QUICK, observer: Observer | None = None) -> Engine:
        engines.append(Engine(model, config, observer))
        return engines[-1]

    yield make
    for engine in engines:
        engine.model.gate.set()  # type: ignore[attr-defined]
        engine.close()


def held_engine(make_engine, model: FakeModel, **settings: int) -> tuple[Engine, Client]:
    """An engine whose first request has begun, and waits for the network until a test sets ``model.gate``."""
    model.gate.clear()
    engine = make_engine(model, EngineConfig(profile_seconds=0, **settings))
    first = Client(engine, job())
    _until(lambda: engine.load().running == 1)
    return engine, first


def job(labels=(1,), steps=5, scale=3.0, name="ddim", seed=7, **fields) -> Job:
    sampler = SamplerConfig(name=name, num_inference_steps=steps, guidance_scale=scale)
    return Job(labels=tuple(labels), sampler=sampler, seed=seed, **fields)


def expected(model: FakeModel, asked: Job) -> np.ndarray:
    """The images by core.sampling alone."""
    rows = init_rows(
        model.latent_shape,
        labels=torch.tensor(asked.labels),
        sample_id=torch.arange(len(asked.labels)),
        seed=asked.seed,
        guidance_scale=asked.sampler.guidance_scale,
    )
    return model.decode(sample(model.guided_model, rows, TableBank([model.table(asked.sampler)])))


def test_images_are_those_of_bulk_sampling_in_any_mixture(make_engine):
    model = FakeModel()
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=7, slots=5, decode_batch=3))
    rng = np.random.default_rng(0)
    jobs = [
        job(
            rng.integers(0, NUM_CLASSES, rng.integers(1, 6)).tolist(),
            steps=int(rng.integers(1, 15)),
            scale=float(rng.choice([1.0, 2.0, 4.5])),
            name=str(rng.choice(["ddpm", "ddim", "dpmpp", "unipc"])),
            seed=int(rng.integers(0, 2**62)),
        )
        for _ in range(30)
    ]
    model.gate.clear()
    clients = [Client(engine, asked) for asked in jobs]
    model.gate.set()
    for client, asked in zip(clients, jobs, strict=True):
        assert isinstance(client.last, Done)
        got, want = client.pictures(), expected(FakeModel(), asked)
        assert sorted(got) == list(range(len(asked.labels)))
        for index, pixels in got.items():
            assert np.abs(pixels.astype(int) - want[index].astype(int)).max() <= 1
    assert max(map(len, model.calls)) <= 7
    assert np.mean([len(call) for call in model.calls]) > 5  # they did share calls


def test_one_call_holds_requests_of_other_steps_and_scales(make_engine):
    model = FakeModel()
    model.gate.clear()
    engine = make_engine(model)
    first = Client(engine, job([1, 1], steps=9))
    second = Client(engine, job([2], steps=3, scale=1.0, name="ddpm"))
    time.sleep(0.05)
    model.gate.set()
    first.wait(), second.wait()
    together = [call for call in model.calls if {1, 2} <= set(call)]
    assert len(together) == 3
    assert sorted(together[0]) == [1, 1, 2, NUM_CLASSES, NUM_CLASSES]


def test_a_short_request_is_not_held_up_by_a_long_one(make_engine):
    model = FakeModel(a=0.002, b=0.002)  # a CPU's curve: rows cost
    engine = make_engine(model, EngineConfig(profile_seconds=5, max_step_rows=64))
    alone = Client(engine, job([1], steps=20)).seconds
    long = Client(engine, job([2] * 10, steps=250))
    time.sleep(0.1)
    met = Client(engine, job([1], steps=20)).seconds
    assert met <= 3 * alone
    long.request.cancel()
    assert long.last == Failed("cancelled")


def test_a_short_request_passes_a_long_one_which_has_what_it_leaves(make_engine):
    model = FakeModel(a=0.001)
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=4))
    long = Client(engine, job([2] * 10, steps=100))
    time.sleep(0.03)
    before = len(model.calls)
    Client(engine, job([1], steps=10)).wait()
    during = model.calls[before:]
    assert len(during) <= 10 + 3  # it took part in each call
    assert all(2 in call for call in during)  # and the long one has the rest of each
    long.request.cancel()


def test_equal_requests_are_served_in_turn(make_engine):
    model = FakeModel(a=0.001)
    model.gate.clear()
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=4))
    clients = [Client(engine, job([label] * 6, steps=20)) for label in (1, 2)]
    time.sleep(0.05)
    model.gate.set()
    for client in clients:
        client.wait()
    last = max(number for number, call in enumerate(model.calls) if 1 in call)
    assert last <= 61  # as if it were alone; the first call held what was there before the gate
    assert all(
        call.count(1) == 2 for call in model.calls[1 : last + 1]
    )  # a guided image has the null class too


def test_a_long_request_is_not_passed_for_ever(make_engine, monkeypatch):
    monkeypatch.setattr("ray_dit.serving.engine.PATIENCE", 10)
    model = FakeModel(a=0.001)
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=2))
    long = Client(engine, job([1], steps=60))
    _until(lambda: model.calls)
    busy = True

    def keep_asking() -> None:
        while busy:
            Client(engine, job([2], steps=20)).wait()

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
    # Passed by those who are due before it: it is after 600 ms of steps, they after 200 ms from when they came.
    assert 150 < before_long < 700


def test_those_due_first_get_the_slots_that_become_free(make_engine):
    model = FakeModel(a=0.002)
    engine, first = held_engine(make_engine, model, slots=1)
    long, short = Client(engine, job([2], steps=250)), Client(engine, job([3], steps=2))
    model.gate.set()
    first.wait(), short.wait()
    of_short = [number for number, call in enumerate(model.calls) if 3 in call]
    assert len(of_short) == 2 and not any(2 in call for call in model.calls[: of_short[-1]])
    long.request.cancel()


def test_rows_that_guidance_no_longer_needs_are_given_to_others(make_engine):
    model = FakeModel(a=0.001)
    model.gate.clear()
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=2))
    early = SamplerConfig(
        name="ddim", num_inference_steps=20, guidance_scale=3.0, guidance_interval=(500.0, 1000.0)
    )
    first = Client(engine, Job(labels=(1,), sampler=early, seed=1))
    second = Client(engine, job([2], steps=100, scale=1.0))
    time.sleep(0.05)
    model.gate.set()
    first.wait()
    together = [call for call in model.calls if 1 in call]
    guided = int(model.table(early).guided.sum())
    assert 5 < guided < 15
    assert [sorted(call) for call in together] == [[1, NUM_CLASSES]] * guided + [[1, 2]] * (20 - guided)
    second.request.cancel()


def test_a_deadline_passes_while_all_images_are_being_decoded(make_engine):
    model = FakeModel()
    model.decode_gate.clear()
    engine = make_engine(model)
    client = Client(engine, job([1], steps=2, seconds=0.3))
    assert client.last == Failed("deadline")
    assert client.seconds < 2
    model.decode_gate.set()


def test_a_queue_holds_no_more_while_a_step_runs(make_engine):
    engine, _ = held_engine(make_engine, FakeModel(), slots=4, max_queued=2)
    for _ in range(3 + 2):  # three slots are free, two may wait
        Client(engine, job())
    with pytest.raises(QueueFull):
        Client(engine, job())


def test_long_requests_leave_slots_to_others(make_engine):
    model = FakeModel(a=0.001)
    engine = make_engine(model, EngineConfig(profile_seconds=0, slots=16, max_step_rows=64))
    long = [Client(engine, job([2] * 10, steps=250, scale=1.0)) for _ in range(4)]
    _until(lambda: any(len(call) == 12 for call in model.calls))
    assert max(len(call) for call in model.calls) == 12
    Client(engine, job([1], steps=3)).wait()
    assert not any(client.request.ended for client in long)
    for client in long:
        client.request.cancel()


def test_memory_that_is_short_between_calls_loses_no_image(make_engine, monkeypatch):
    model = FakeModel(a=0.001)
    engine = make_engine(model, EngineConfig(profile_seconds=0, max_step_rows=8))
    first = Client(engine, job([1], steps=250, scale=1.0))
    _until(lambda: model.calls)
    whole, failures = Rows.cat, iter([True])

    def short_once(parts):
        if next(failures, False):
            raise torch.OutOfMemoryError
        return whole(parts)

    monkeypatch.setattr(Rows, "cat", staticmethod(short_once))
    second = Client(engine, job([2] * 4, steps=20, scale=1.0))
    assert isinstance(second.last, Done) and isinstance(first.last, Done)
    assert len(second.pictures()) == 4
    assert next(failures, None) is None


def test_a_broken_vae_makes_the_engine_unhealthy(make_engine):
    model = FakeModel()
    engine = make_engine(model)

    def broken(latents):
        raise RuntimeError("no VAE")

    model.decode = broken
    for expected_health in (True, True, False):
        assert Client(engine, job()).last == Failed("internal")
        assert engine.healthy is expected_health


def test_waiting_requests_enter_as_slots_free(make_engine):
    model = FakeModel()
    engine = make_engine(model, EngineConfig(profile_seconds=0, slots=2))
    clients = [Client(engine, job([1, 2, 3], steps=3)) for _ in range(4)]
    assert all(isinstance(client.last, Done) for client in clients)
    assert max(map(len, model.calls)) <= 4  # two images, guided


def test_a_full_queue_says_when_to_come_again(make_engine):
    engine, _ = held_engine(make_engine, FakeModel(), slots=1, max_queued=1)
    Client(engine, job())
    with pytest.raises(QueueFull) as caught:
        Client(engine, job())
    assert 1 <= caught.value.retry_after <= 120


def test_cancel_frees_the_slots_within_one_step(make_engine):
    model = FakeModel(a=0.005)
    engine = make_engine(model)
    clients = [Client(engine, job([i], steps=200, scale=1.0)) for i in range(8)]
    _until(lambda: model.calls and len(model.calls[-1]) == 8)
    for client in clients[::2]:
        client.request.cancel()
    at = len(model.calls)
    _until(lambda: len(model.calls) >= at + 3)
    assert len(model.calls[at + 2]) == 4
    assert engine.load().images == 4
    assert all(client.last == Failed("cancelled") for client in clients[::2])
    for client in clients[1::2]:
        client.request.cancel()


def test_a_deadline_ends_running_and_waiting_requests(make_engine):
    model = FakeModel(a=0.01)
    engine = make_engine(model, EngineConfig(profile_seconds=0, slots=1))
    running = Client(engine, job(steps=200, seconds=0.1))
    waiting = Client(engine, job(steps=200, seconds=0.05))
    assert running.last == Failed("deadline") and running.seconds < 0.5
    assert waiting.last == Failed("deadline") and waiting.seconds < 0.5
    assert engine.load().images == 0


def test_previews_lead_to_the_image(make_engine):
    engine = make_engine(FakeModel(a=0.01))
    client = Client(engine, job([1, 2], steps=12, previews=3)).wait()
    for index in (0, 1):
        mine = [e for e in client.events if isinstance(e, Preview | Picture) and e.index == index]
        assert [e.step for e in mine if isinstance(e, Preview)] == [3, 6, 9]
        assert isinstance(mine[-1], Picture)


def test_no_preview_follows_its_image(make_engine):
    model = FakeModel(a=0.002)
    engine = make_engine(model, EngineConfig(profile_seconds=0, decode_batch=1, max_step_rows=2))
    model.decode_gate.clear()  # the decoder is slow: image 0 is there before its previews are decoded
    client = Client(engine, job([1, 2], steps=12, previews=3))
    _until(lambda: len(model.calls) >= 13)
    model.gate.clear()
    model.decode_gate.set()
    _until(lambda: any(isinstance(event, Picture) for event in client.events))
    time.sleep(0.05)
    model.gate.set()
    for index in range(2):
        mine = [e for e in client.wait().events if isinstance(e, Preview | Picture) and e.index == index]
        assert isinstance(mine[-1], Picture)


def test_preview_steps_are_spread_and_never_the_last():
    assert preview_steps(12, 3) == {3, 6, 9}
    assert preview_steps(2, 10) <= {1}
    assert preview_steps(1, 3) == frozenset()
    assert preview_steps(50, 0) == frozenset()


def test_slow_decoding_does_not_stall_denoising(make_engine):
    model = FakeModel(a=0.002, decode_seconds=0.2)
    engine = make_engine(model, EngineConfig(profile_seconds=0, decode_batch=1))
    first = Client(engine, job([1], steps=2))
    second = Client(engine, job([2], steps=60))
    first.wait()
    assert len(model.calls) > 15  # second went on during the decoding of first
    second.wait()


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(make_engine):
    model = FakeModel()
    engine = make_engine(model)
    model.broken = RuntimeError("kernel trouble")
    assert Client(engine, job()).last == Failed("internal")
    model.broken = None
    assert isinstance(Client(engine, job()).last, Done)
    for _ in range(2):  # failures that are not in a row
        model.broken = RuntimeError("kernel trouble")
        assert Client(engine, job()).last == Failed("internal")
        assert Client(engine, job()).last == Failed("internal")
        model.broken = None
        assert isinstance(Client(engine, job()).last, Done)
    assert engine.healthy
    model.broken = RuntimeError("gone for good")
    for _ in range(3):
        Client(engine, job()).wait()
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
    assert isinstance(Client(engine, job([1] * 10)).last, Done)
    assert engine.max_step_rows <= 8 and max(map(len, model.calls)) <= 4


def test_close_drains_or_fails(make_engine):
    model = FakeModel(a=0.002)
    draining = make_engine(model)
    client = Client(draining, job(steps=20))
    draining.close(drain=True)
    assert isinstance(client.last, Done)
    with pytest.raises(Closed):
        Client(draining, job())
    stopping = make_engine(FakeModel(a=0.01))
    client = Client(stopping, job(steps=200))
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
    Client(engine, job([1], steps=4, previews=1)).wait()
    _until(lambda: ("end", "done") in seen.queue)
    events = list(seen.queue)
    assert [value for kind, value in events if kind == "step"] == [2] * 4
    assert events.count(("first", True)) == 1


def _until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)
