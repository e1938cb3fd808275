"""Shape checks of the core are off here: they are the core's tests' affair, and cost as much as a small step."""

import pytest
from jaxtyping import config


@pytest.fixture(autouse=True, scope="module")
def _no_shape_checks():
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
