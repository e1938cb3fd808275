"""The decoder's thread in an engine: previews before their image, failures, nobody held up."""

import time

from ray_dit.config.serve import EngineConfig
from ray_dit.serving.engine.tickets import Failed, FinalImage, Preview
from tests.serving.engine.clients import Client, until, work
from tests.support.fakes import FakeModel


def test_slow_decoding_does_not_stall_denoising(make_engine):
    model = FakeModel(a=0.002, decode_seconds=0.2)
    engine = make_engine(model, EngineConfig(profile_seconds=0, decode_batch=1))
    first = Client(engine, work([1], steps=2))
    second = Client(engine, work([2], steps=60))
    first.wait()
    assert len(model.calls) > 15  # second went on during the decoding of first
    second.wait()


def test_a_deadline_passes_while_all_images_are_being_decoded(make_engine):
    model = FakeModel()
    model.decode_gate.clear()
    engine = make_engine(model)
    client = Client(engine, work([1], steps=2, seconds=0.3))
    assert client.last == Failed("deadline")
    assert client.seconds < 2
    model.decode_gate.set()


def test_previews_lead_to_the_image(make_engine):
    engine = make_engine(FakeModel(a=0.01))
    client = Client(engine, work([1, 2], steps=12, previews=3)).wait()
    for index in (0, 1):
        mine = [e for e in client.events if isinstance(e, Preview | FinalImage) and e.index == index]
        assert [e.step for e in mine if isinstance(e, Preview)] == [3, 6, 9]
        assert isinstance(mine[-1], FinalImage)


def test_no_preview_follows_its_image(make_engine):
    model = FakeModel(a=0.002)
    engine = make_engine(model, EngineConfig(profile_seconds=0, decode_batch=1, max_step_rows=2))
    model.decode_gate.clear()  # the decoder is slow: image 0 is there before its previews are decoded
    client = Client(engine, work([1, 2], steps=12, previews=3))
    until(lambda: len(model.calls) >= 13)
    model.gate.clear()
    model.decode_gate.set()
    until(lambda: any(isinstance(event, FinalImage) for event in client.events))
    time.sleep(0.05)
    model.gate.set()
    for index in range(2):
        mine = [e for e in client.wait().events if isinstance(e, Preview | FinalImage) and e.index == index]
        assert isinstance(mine[-1], FinalImage)


def test_a_broken_vae_makes_the_engine_unhealthy(make_engine):
    model = FakeModel()
    engine = make_engine(model)

    def broken(latents):
        raise RuntimeError("no VAE")

    model.decode = broken
    for expected_health in (True, True, False):
        assert Client(engine, work()).last == Failed("internal")
        assert engine.healthy is expected_health
