"""Refusals and their status."""

import pytest

from ray_dit.serving.backend import Refused
from tests.serving.http.client import ask
from tests.support.fakes import FakeBackend


# fmt: skip
@pytest.mark.parametrize(
    ("reason", "status"),
    [("queue_full", 429), ("deadline", 504), ("closed", 503), ("internal", 500), ("lost", 503)],
)
def test_refusals_have_their_status(reason, status):
    assert ask(FakeBackend([Refused(reason, "so it is", 5)]), json={"prompt": "1"}).status_code == status
