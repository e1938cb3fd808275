"""A real S3 service in the environment, to put a proxy before."""

import pytest

from tests.support import seaweed


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> str:
    """The service's own endpoint; ``AWS_ENDPOINT_URL`` points to it until a test sets it to a proxy's."""
    url = seaweed.endpoint()
    for name, value in seaweed.environment(url).items():
        monkeypatch.setenv(name, value)
    return url
