"""Defects are logged, and not shown."""

import json
import logging

from tests.serving.http.client import ask
from tests.support.fakes import FakeBackend


def test_a_defect_shows_no_traceback_and_is_logged_with_the_request_id(caplog):
    class Broken(FakeBackend):
        async def info(self):
            raise RuntimeError("secret at /home/someone")

    with caplog.at_level(logging.INFO, "ray_dit.serving"):
        answer = ask(Broken(), json={"prompt": "1"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    lines = [json.loads(r.message) for r in caplog.records if r.name == "ray_dit.serving.requests"]
    assert lines[0]["request_id"] == answer.headers["x-request-id"]
    assert lines[0]["status"] == 500
