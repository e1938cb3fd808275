"""Stores of each kind, shared with the tests of storage; images, and the latents folder that plans lie in."""

from pathlib import Path

import pytest

from ray_dit.config import ImagesConfig
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support.stores import s3_environment, store
from tests.support.tiny import SIZE, write_pictures

__all__ = ["folder", "images", "s3_environment", "store"]


@pytest.fixture
def images(tmp_path: Path) -> ImagesConfig:
    write_pictures(tmp_path / "images", {"left": 6, "right": 4})
    return ImagesConfig(uri=str(tmp_path / "images"), size=SIZE, heldout=0.3)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "latents"))
