"""The OpenAPI document: by itself, and against the server by schemathesis: no 5xx, no undocumented answer."""

import contextlib
import json

import jsonschema
import pytest

from ray_dit.config.serve import ApiConfig, LimitsConfig
from tests.serving.http.client import ask
from tests.support.fakes import FakeBackend
from tests.support.serving import serving

LIMITS = LimitsConfig(requests_per_minute=10**6, max_concurrent=10**6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["openai", "strict"])
def test_every_answer_is_as_documented(mode):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import checks
    from schemathesis.specs.openapi import checks as openapi

    wanted = [
        checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_headers_conformance,
        openapi.response_schema_conformance,
        openapi.unsupported_method,
    ]
    with serving({"fake": FakeBackend()}, ApiConfig(limits=LIMITS, compatibility=mode)) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == 6
        seen: set[int] = set()
        for operation in operations:
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                strategy = operation.as_strategy(generation_mode=mode)

                @settings(
                    max_examples=40, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                @given(case=strategy)
                def answers_as_documented(case):
                    answer = case.call(base_url=url)
                    seen.add(answer.status_code)
                    case.validate_response(answer, checks=wanted)

                with contextlib.suppress(Unsatisfiable):  # a route without input takes no wrong one
                    answers_as_documented()
        assert {200, 400, 404} <= seen


@pytest.mark.parametrize("mode", ["openai", "strict"])
def test_every_event_is_as_documented(mode):
    config = ApiConfig(compatibility=mode)
    document = ask(config=config, method="GET", path="/openapi.json").json()
    answer = ask(FakeBackend(), config, json={"prompt": "1", "n": 2, "stream": True, "partial_images": 1})
    described = {"PartialImageEvent": 0, "CompletedEvent": 0}
    for block in answer.text.split("\n\n"):
        if not block.startswith("event: "):
            continue
        name, _, data = block.partition("\ndata: ")
        event = json.loads(data)
        assert name == f"event: {event['type']}"
        kind = "PartialImageEvent" if "partial" in name else "CompletedEvent"
        described[kind] += 1
        schema = document["components"]["schemas"][kind]
        jsonschema.validate(
            event, schema | {"components": document["components"], "additionalProperties": False}
        )
    assert described == {"PartialImageEvent": 2, "CompletedEvent": 2}


def request_schema(config: ApiConfig) -> dict:
    document = ask(config=config, method="GET", path="/openapi.json").json()
    body = document["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ImageRequest"}
    return document["components"]["schemas"]["ImageRequest"]


def integer(schema: dict, field: str) -> dict:
    return next(form for form in schema["properties"][field]["anyOf"] if form.get("type") == "integer")


@pytest.mark.parametrize("mode", ["openai", "strict"])
def test_the_document_shows_the_operators_limits_and_exact_bounds(mode):
    limits = LimitsConfig(max_images=4, max_inference_steps=30, max_total_steps=77, max_partial_images=2)
    schema = request_schema(ApiConfig(limits=limits, compatibility=mode))
    most = [integer(schema, name)["maximum"] for name in ("n", "num_inference_steps", "partial_images")]
    assert most == [4, 30, 2]
    lists = next(form for form in schema["properties"]["class_labels"]["anyOf"] if form["type"] == "array")
    assert lists["maxItems"] == 4
    assert "at most 77 per request" in schema["properties"]["num_inference_steps"]["description"]
    bound = integer(schema, "seed")["maximum"]
    assert bound == 9007199254740991
    assert isinstance(bound, int)
    assert integer(schema, "seed")["minimum"] == (-1 if mode == "openai" else 0)
    assert schema["additionalProperties"] is (mode == "openai")
    for name, value, said in (
        ("n", 5, "at most 4 images"),
        ("num_inference_steps", 31, "at most 30 steps"),
        ("partial_images", 3, "at most 2 previews"),
    ):
        body = {"prompt": "1", "stream": True, name: value}
        error = ask(config=ApiConfig(limits=limits, compatibility=mode), json=body).json()["error"]
        assert error["param"] == name
        assert said in error["message"]


def test_a_model_tells_the_limits_and_whether_it_can_be_guided():
    limits = LimitsConfig(max_images=4, max_inference_steps=30, max_total_steps=77, max_partial_images=2)
    model = ask(config=ApiConfig(limits=limits), method="GET", path="/v1/models/fake").json()
    names = ("max_images", "max_inference_steps", "max_total_steps", "max_partial_images", "guidable")
    assert [model[name] for name in names] == [4, 30, 77, 2, True]


@pytest.mark.parametrize("mode", ["openai", "strict"])
def test_the_document_knows_how_images_are_answered(mode):
    config = ApiConfig(compatibility=mode)
    document = ask(config=config, method="GET", path="/openapi.json").json()
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]["200"]
    assert ("x-ray-dit-warning" in answers.get("headers", {})) is (mode == "openai")
    name = answers["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert name == ("OpenAIImagesResponse" if mode == "openai" else "ImagesResponse")
