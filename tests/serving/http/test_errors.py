"""Refusals and their status."""

import pytest

from ray_dit.config.serve import ApiConfig
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


@pytest.mark.parametrize("mode", ["openai", "strict"])
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"class_labels": [True]}, "class_labels.0"),
        ({"class_labels": [1, {"a": 1}]}, "class_labels.1"),
        ({"class_labels": ["x" * 401]}, "class_labels.0"),
        ({"class_labels": []}, "class_labels"),
        ({"prompt": ["1"]}, "prompt"),
        ({"prompt": "1", "output_format": "gif"}, "output_format"),
        ({"prompt": "1", "sampler": "heun"}, "sampler"),
        ({"prompt": "1", "guidance_scale": 21}, "guidance_scale"),
        ([1], "body"),
        ("1", "body"),
    ],
)
def test_errors_name_the_field_and_nothing_of_the_library_that_checked_it(body, param, mode):
    answer = ask(config=ApiConfig(compatibility=mode), json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    for internal in ("constrained", "function-", "dictionary", "extract fields", "int_type", "union"):
        assert internal not in error["message"]


def test_a_missing_body_and_a_query_are_told_alike():
    assert ask().json()["error"]["message"] == "body: is missing"
    assert ask(method="GET", path="/v1/labels?limit=0").json()["error"]["param"] == "limit"
