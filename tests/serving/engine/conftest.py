"""Engines over fake models, closed at the end of each test."""

import pytest

from ray_dit.config.serve import EngineConfig
from ray_dit.serving.engine.loop import Engine
from ray_dit.serving.engine.tickets import Observer
from tests.serving.engine.clients import QUICK
from tests.support.fakes import FakeModel


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
