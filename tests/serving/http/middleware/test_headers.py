"""Headers that are too long or too many."""

import pytest

from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.serving.http.client import ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"cookie": "x" * 7000}, 200),
        ({"cookie": "x" * 9000}, 431),
        ({f"x-{i}": "" for i in range(80)}, 200),
        ({f"x-{i}": "" for i in range(120)}, 431),
    ],
)
def test_headers_are_bounded(headers, status):
    config = ApiConfig(limits=LimitsConfig(max_header_bytes=8192))
    answer = ask(config=config, method="GET", path="/health", headers=headers)
    assert answer.status_code == status
    if status == 431:
        assert answer.json()["error"]["code"] == "headers_too_large"


def test_so_is_the_target():
    config = ApiConfig(limits=LimitsConfig(max_header_bytes=1000))
    assert ask(config=config, method="GET", path="/v1/labels?x=" + "y" * 1000).status_code == 431
    assert ask(config=config, method="GET", path="/health").status_code == 200
