"""What OpenAI's clients send, as they mean it: the functions by themselves, and through the API."""

import asyncio
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_dit.config import SamplerConfig
from ray_dit.config.serve import ApiConfig
from ray_dit.formats.labels import Labels
from ray_dit.serving.backend import ModelInfo
from ray_dit.serving.http.app import create_app
from ray_dit.serving.http.compatibility import WARNING_HEADER, fit, relax, warning_header
from ray_dit.serving.http.errors import ApiError
from ray_dit.serving.http.schemas import OpenAIImageRequest
from tests.serving.http.client import ask
from tests.support.fakes import FakeBackend

INFO = ModelInfo(
    name="m",
    labels=Labels(("goldfish, Carassius auratus", "hen")),
    image_size=256,
    sampler=SamplerConfig(),
    guidable=True,
    created=1,
)


@pytest.mark.parametrize(
    ("field", "sent", "meant"),
    [
        ("n", 2, 2),
        ("n", 2.0, 2),
        ("n", "2", 2),
        ("n", " 2.0 ", 2),
        ("seed", "9007199254740991", 2**53 - 1),
        ("seed", -7, -7),  # refused when the body is checked
        ("guidance_scale", "4.5", 4.5),
        ("num_inference_steps", "25", 25),
        ("output_compression", 80.0, 80),
        ("class_labels", [1.0, "hen", 2], [1, "hen", 2]),
        ("n", True, True),  # nothing that can be read: left to be refused
        ("n", "1.5", "1.5"),
        ("n", "9" * 21, "9" * 21),
        ("n", float("inf"), float("inf")),
        ("n", [2], [2]),
        ("guidance_scale", "strong", "strong"),
    ],
)
def test_numbers_are_read_in_every_way_they_are_written(field, sent, meant):
    body, warnings = relax({field: sent})
    assert body == {field: meant}
    assert type(body[field]) is type(meant)
    assert warnings == []


@pytest.mark.parametrize("seed", [-1, -1.0, "-1", "", None])
def test_a_seed_of_minus_one_is_none(seed):
    assert relax({"prompt": "hen", "seed": seed}) == ({"prompt": "hen"}, [])


def test_empty_strings_and_nulls_are_left_out():
    assert relax(dict.fromkeys(OpenAIImageRequest.model_fields, "")) == ({}, [])
    assert relax(dict.fromkeys(OpenAIImageRequest.model_fields)) == ({}, [])


def test_what_has_no_effect_is_named():
    fields = {"quality": "hd", "style": {"a": 1}, "background": "transparent", "user": 7, "moderation": "low"}
    body, warnings = relax({**fields, "steps": 3, "négatif": ""})
    assert body == {}
    assert warnings == [
        "ignored unknown fields: steps, négatif",
        "quality has no effect",
        "style has no effect",
        "background has no effect: images are opaque",
    ]
    assert relax({"quality": "auto", "background": "opaque"}) == ({}, [])
    _, (warning,) = relax({f"field{i}": i for i in range(20)})
    assert warning.endswith("field7 and 12 more")


@given(st.dictionaries(st.text(), st.none() | st.text() | st.floats() | st.lists(st.text())))
def test_any_object_is_read_and_its_warning_is_a_header(body):
    before = json.dumps(body)
    read, warnings = relax(body)
    assert json.dumps(body) == before
    assert set(read) <= set(OpenAIImageRequest.model_fields)
    for value in warning_header(warnings).values():
        assert 0 < len(value) <= 1000
        assert all(" " <= character <= "~" for character in value)


@pytest.mark.parametrize("size", ["1024x1024", "auto", None, "big", 512, [1, 2], "256x256"])
def test_any_size_is_taken_for_the_models_own(size):
    body, warnings = fit(OpenAIImageRequest(prompt="hen", size=size), INFO)
    assert body.size is None
    assert warnings == ([] if size in ("auto", None, "256x256") else ["size is 256x256, the model's own"])


@pytest.mark.parametrize(
    ("prompt", "label", "told"),
    [
        ("hen", 1, False),
        ("HEN", 1, False),
        ("1", 1, False),
        ("a hen", 1, True),
        ("goldfish", 0, False),
        ("goldfishes", 0, True),
        ("carassius auratus ", 0, False),
    ],
)
def test_the_class_of_a_prompt_is_told_unless_it_is_the_prompt(prompt, label, told):
    body, warnings = fit(OpenAIImageRequest(prompt=prompt), INFO)
    assert (body.prompt, body.class_labels) == (None, [label])
    assert bool(warnings) is told


def test_a_prompt_without_a_class_is_refused_with_candidates():
    with pytest.raises(ApiError) as caught:
        fit(OpenAIImageRequest(prompt="a hen looking at a goldfish, said to be the last one"), INFO)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "prompt", "unknown_class")
    assert "'hen' (1)" in caught.value.message
    assert "(0)" in caught.value.message


def test_a_model_without_classes_takes_any_prompt():
    class Unlabelled(FakeBackend):
        async def info(self):
            return ModelInfo(
                name="m", labels=Labels(()), image_size=8, sampler=SamplerConfig(), guidable=False, created=1
            )

    assert ask(Unlabelled(), json={"prompt": "a sunset " * 3000}).status_code == 200


@pytest.mark.parametrize("length", [4_000, 32_000])
def test_long_prompts_are_taken_up_to_openais_limit(length):
    prompt = ("draw the digit 7 " + "in oil " * length)[:length]
    answer = ask(json={"prompt": prompt})
    assert answer.status_code == 200
    assert answer.json()["data"][0]["label"] == 7
    assert ask(json={"prompt": prompt + "!" * (32_001 - length)}).status_code == 400


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        ({}, {"b64_json", "url"}),
        ({"response_format": "b64_json"}, {"b64_json"}),
        ({"response_format": "url"}, {"url"}),
        ({"response_format": ""}, {"b64_json", "url"}),
    ],
)
def test_images_come_in_the_form_asked_for(asked, keys):
    answer = ask(json={"prompt": "1", "output_format": "webp", **asked}).json()
    (image,) = answer["data"]
    assert {"b64_json", "url"} & set(image) == keys
    assert image.get("url", "data:image/webp;base64,").startswith("data:image/webp;base64,")
    assert answer["size"] == "8x8"


def test_warnings_are_in_the_header_and_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "ray_dit.serving.requests"):
        whole = ask(json={"prompt": "1", "cfg": 3})
        stream = ask(json={"prompt": "1", "cfg": 3, "stream": True, "response_format": "url"})
        silent = ask(json={"prompt": "1"})
    assert whole.headers[WARNING_HEADER] == "ignored unknown fields: cfg"
    assert "its events hold b64_json" in stream.headers[WARNING_HEADER]
    assert WARNING_HEADER not in silent.headers
    lines = [json.loads(record.message) for record in caplog.records]
    assert lines[0]["warnings"] == ["ignored unknown fields: cfg"]
    assert "warnings" not in lines[2]


def test_aliases_lead_to_their_model_and_other_names_nowhere():
    config = ApiConfig(aliases=("dall-e-3=fake",))
    for mode in ("openai", "strict"):
        config = config.model_copy(update={"compatibility": mode})
        answer = ask(config=config, json={"prompt": "1", "model": "dall-e-3"})
        assert answer.json()["model"] == "fake"
        unknown = ask(config=config, json={"prompt": "1", "model": "dall-e-2"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
        assert "dall-e-3" in unknown.json()["error"]["message"]
    assert ask(config=config, method="GET", path="/v1/models/dall-e-3").json()["id"] == "fake"
    listed = ask(config=config, method="GET", path="/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["fake"]


def test_an_application_with_a_wrong_alias_does_not_start():
    with pytest.raises(ValueError, match="no model 'other' is served"):
        create_app({"fake": FakeBackend()}, ApiConfig(aliases=("dall-e-3=other",)))


def test_a_body_is_checked_before_the_model_is_asked():
    class Loading(FakeBackend):
        async def info(self):
            await asyncio.sleep(60)
            raise AssertionError

    assert ask(Loading(), json={"prompt": "1", "n": "many"}).status_code == 400
