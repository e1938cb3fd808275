"""The samplers that the HTTP API accepts and the page offers are those of the registry."""

import re

from starlette.testclient import TestClient

from ray_dit.config.serve import ApiConfig
from ray_dit.core.samplers import SAMPLERS
from ray_dit.serving.http.app import create_app
from tests.support.fakes import FakeBackend


def test_the_schema_and_the_page_name_every_sampler():
    with TestClient(create_app({"fake": FakeBackend()}, ApiConfig()), base_url="http://127.0.0.1") as client:
        schema = client.get("/openapi.json").json()["components"]["schemas"]["ImageRequest"]
        page = client.get("/").text
    accepted, *_ = schema["properties"]["sampler"]["anyOf"]
    assert accepted["enum"] == list(SAMPLERS)
    select = re.search(r'<select id="sampler">(.*?)</select>', page, re.S)
    assert select is not None
    offered = re.findall(r'<option value="(\w+)">([^<]+)</option>', select[1])
    assert offered == [(name, sampler.title) for name, sampler in SAMPLERS.items()]
