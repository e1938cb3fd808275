"""One Ray per module for the tests that call stages in their own process."""

from collections.abc import Iterator
from typing import Any

import pytest

from ray_dit.config import StageConfig
from ray_dit.runtime.session import ray_session


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A private Ray with a home and a cache of its own; stages join it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_DIT_CACHE", str(home / "cache"))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_session(StageConfig(output="unused", num_cpus=4)) as ray:
            yield ray
