"""The public `openai` client, unmodified: images, streams, errors as its own classes, retries."""

import base64
import io
import time

import numpy as np
import openai
import pytest
from PIL import Image

from ray_dit.pipeline import Pipeline
from ray_dit.serving.backend import Refused
from tests.serving.http.client import STRICT
from tests.support.fakes import FakeBackend
from tests.support.serving import pixels, serving


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_images_are_those_of_the_pipeline(client, pipeline: Pipeline):
    answer = client.images.generate(
        prompt="goldfish",
        n=3,
        size="32x32",
        extra_body={"seed": 5, "num_inference_steps": 4, "guidance_scale": 3.0, "sampler": "unipc"},
    )
    want = pipeline(["goldfish"] * 3, seed=5, steps=4, guidance_scale=3.0, sampler="unipc")
    assert len(answer.data) == 3
    for got, image in zip(answer.data, want, strict=True):
        assert np.abs(pixels(got.b64_json).astype(int) - np.asarray(image).astype(int)).max() <= 1
    assert answer.size == "32x32"
    assert answer.output_format == "png"
    assert answer.usage.output_tokens == 12
    assert answer.model_extra["seed"] == 5
    assert answer.data[0].revised_prompt == "goldfish"


def test_a_told_seed_makes_the_same_image_again(client):
    first = client.images.generate(prompt="5")
    again = client.images.generate(prompt="hen", extra_body={"seed": first.model_extra["seed"]})
    other = client.images.generate(prompt="hen")
    assert first.data[0].b64_json == again.data[0].b64_json
    assert first.data[0].b64_json != other.data[0].b64_json


def test_class_labels_make_one_image_each(client, pipeline: Pipeline):
    answer = client.images.generate(prompt="", extra_body={"class_labels": [0, "hen"], "seed": 1})
    assert [image.model_extra["label"] for image in answer.data] == [0, 5]
    for got, want in zip(answer.data, pipeline([0, 5], seed=1), strict=True):
        assert np.abs(pixels(got.b64_json).astype(int) - np.asarray(want).astype(int)).max() <= 1


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_formats(client, output_format):
    answer = client.images.generate(prompt="hen", output_format=output_format, output_compression=80)
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert image.format.lower() == output_format
    assert image.size == (32, 32)


def test_a_stream_of_previews_ends_in_the_image(client):
    extra = {"seed": 3, "num_inference_steps": 100, "sampler": "ddim"}
    with client.images.generate(prompt="goldfish", stream=True, partial_images=3, extra_body=extra) as stream:
        events = list(stream)
    partials = [event for event in events if event.type == "image_generation.partial_image"]
    assert events[-1].type == "image_generation.completed"
    assert [event.partial_image_index for event in partials] == list(range(len(partials)))
    assert 1 <= len(partials) <= 3  # one that is out of date when the decoder gets to it is left out
    final = pixels(events[-1].b64_json)
    whole = client.images.generate(prompt="goldfish", extra_body=extra)
    assert np.array_equal(final, pixels(whole.data[0].b64_json))
    distances = [np.abs(pixels(event.b64_json).astype(int) - final).mean() for event in partials]
    assert distances[-1] < 40
    assert distances == sorted(distances, reverse=True)
    assert events[-1].usage.output_tokens == 100


def test_a_stream_of_several_images(client):
    events = list(
        client.images.generate(prompt="hen", n=4, stream=True, extra_body={"num_inference_steps": 3})
    )
    assert sorted(event.model_extra["index"] for event in events) == [0, 1, 2, 3]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").model_extra["num_classes"] == 6


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"prompt": "gold fish"}, openai.BadRequestError, "prompt"),
        ({"prompt": "crane"}, openai.BadRequestError, "prompt"),
        ({"prompt": "hen", "n": 11}, openai.BadRequestError, "n"),
        ({"prompt": "hen", "n": 1_000_000_000}, openai.BadRequestError, "n"),
        ({"prompt": "hen", "model": "dall-e-3"}, openai.NotFoundError, "model"),
        ({"prompt": "hen", "extra_body": {"class_labels": [1]}}, openai.BadRequestError, "prompt"),
        (
            {"prompt": "hen", "extra_body": {"num_inference_steps": 251}},
            openai.BadRequestError, "num_inference_steps",
        ),
        ({"prompt": "hen", "n": 11, "extra_body": {"num_inference_steps": 1}}, openai.BadRequestError, "n"),
        ({"prompt": "", "n": 2, "extra_body": {"class_labels": [1, 2, 3]}}, openai.BadRequestError, "n"),
        (
            {"prompt": "hen", "stream": True, "extra_body": {"partial_images": 11}},
            openai.BadRequestError, "partial_images",
        ),
    ],
)  # fmt: skip
def test_errors_are_the_clients_own(client, fields, error, param):
    with pytest.raises(error) as caught:
        client.images.generate(**fields)
    assert caught.value.param == param
    assert caught.value.request_id.startswith("req_")


def test_what_means_nothing_here_is_taken_and_told(client):
    raw = client.images.with_raw_response.generate(
        prompt="a photo of a goldfish in a bowl", model="", size="1024x1024", quality="hd",
        style="vivid", background="transparent", response_format="url", extra_body={"steps": 3, "seed": -1},
    )  # fmt: skip
    answer = raw.parse()
    (image,) = answer.data
    assert image.b64_json is None
    assert image.url.startswith("data:image/png;base64,")
    assert pixels(image.url.partition(",")[2]).shape == (32, 32, 3)
    assert (answer.size, image.revised_prompt) == ("32x32", "goldfish")
    assert answer.model_extra["seed"] >= 0
    assert raw.headers["x-ray-dit-warning"] == (
        "ignored unknown fields: steps; quality has no effect; style has no effect; background has no effect"
        ": images are opaque; size is 32x32, the model's own; prompt was taken for the class 1 (goldfish)"
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "512x512"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"background": "transparent"}, "background"),
        ({"model": ""}, "model"),
        ({"extra_body": {"steps": 3}}, "steps"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"n": "1"}}, "n"),
        ({"prompt": "a photo of a hen"}, "prompt"),
        ({"extra_body": {"class_labels": [1]}}, "prompt"),
    ],
)
def test_the_strict_mode_refuses_what_is_not_exactly_right(service, fields, param):
    with (
        serving({"tiny": service}, STRICT) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.images.generate(**{"prompt": "hen", **fields})
    assert caught.value.status_code == (404 if param == "model" else 400)
    assert caught.value.param == param


def test_an_unknown_class_is_answered_with_near_ones(client):
    with pytest.raises(openai.BadRequestError, match="goldfish"):
        client.images.generate(prompt="gold fish")


def test_a_full_queue_is_retried_after_the_time_told():
    backend = FakeBackend([Refused("queue_full", "full", 0.4)])
    with serving({"fake": backend}) as url:
        started = time.monotonic()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            assert client.images.generate(prompt="0").data[0].b64_json
        assert backend.specs == 2
        assert time.monotonic() - started >= 0.9
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            backend.refusals = [Refused("queue_full", "full", 3)]
            with pytest.raises(openai.RateLimitError) as caught:
                client.images.generate(prompt="0")
    assert 3 <= int(caught.value.response.headers["retry-after"]) <= 6


def test_a_deadline_is_not_retried_and_a_late_failure_ends_the_stream():
    backend = FakeBackend([Refused("deadline", "too late")])
    with serving({"fake": backend}) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt="0")
        assert caught.value.status_code == 504
        assert backend.specs == 1
        backend.late = Refused("internal", "the model failed")
        with pytest.raises(openai.APIError, match="the model failed"):
            list(client.images.generate(prompt="0", stream=True))
