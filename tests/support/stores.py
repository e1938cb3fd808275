"""Stores to test: a folder, a real S3 service, fsspec's memory."""

import itertools

import pytest

from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support import seaweed

_memory = itertools.count()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> str:
    """A real S3 service in the environment; its endpoint."""
    url = seaweed.endpoint()
    for name, value in seaweed.environment(url).items():
        monkeypatch.setenv(name, value)
    return url


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3), "memory"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An empty store of each kind."""
    match request.param:
        case "local":
            return open_store(str(tmp_path_factory.mktemp("store")))
        case "s3":
            request.getfixturevalue("s3_environment")
            return open_store(seaweed.fresh_uri())
        case _:
            return open_store(f"memory://store-{next(_memory)}")
