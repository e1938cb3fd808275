"""One line per request, and what is in it."""

import json
import logging

from tests.serving.http.client import ask


def test_one_log_line_per_request(caplog):
    with caplog.at_level(logging.INFO, "ray_dit.serving.requests"):
        ask(
            json={"prompt": "1", "n": 2, "seed": 5},
            headers={"x-request-id": "abc", "authorization": "Bearer k3y"},
        )
        ask(json={"prompt": "unheard of"}, headers={"x-request-id": "bad\x01id"})
    first, second = (json.loads(record.message) for record in caplog.records)
    assert (first["request_id"], first["status"], first["n"], first["seed"], first["model"]) == (
        "abc",
        200,
        2,
        5,
        "fake",
    )
    assert first["seconds"] >= first["first_image_s"] >= 0 and "k3y" not in json.dumps(first)
    assert second["status"] == 400 and second["request_id"].startswith("req_")
