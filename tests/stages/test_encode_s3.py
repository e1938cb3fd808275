"""encode from a public bucket without credentials to another one with them, under names of all kinds.

On a real S3 server that knows who may do what.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.local_s3 import start_seaweed
from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.errors import UserError
from ray_dit.formats.latents import read_latent_shard
from ray_dit.stages.encode import encode
from ray_dit.storage.open import open_store
from tests.support.layouts import tar_bytes
from tests.support.one_ray import one_ray as one_ray
from tests.support.tiny import SIZE, write_vae

pytestmark = [pytest.mark.ray, pytest.mark.s3]

NAMES = [
    "ä b+%#/ß ö+%20#.png", "ä b+%#/a=b&c;d,e$f.png", "ä b+%#/é.png", "100%/+.png", "100%/#1 (2).png",
    "100%/%2F%41.png",
    "日本 語/写真~!'@.png", "日本 語/[x] {y}^.png", "plain/a.png", "plain/deeper ü/a+b c.png",
]  # fmt: skip
IDENTITIES = {
    "owner": ["Admin"],
    "user": ["Admin:out", "Read:out", "Write:out", "List:out"],
    # the server is ready when anybody has written into a bucket of this name
    "anonymous": ["Admin:ready", "Write:ready", "Read:photos", "List:photos"],
}


def credentials(name: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": f"{name}-secret"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for number, name in enumerate(NAMES):
        picture = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(picture).save(sink, "PNG")
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(sink.getvalue())
    write_vae(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def s3(place: Path) -> Iterator[pytest.MonkeyPatch]:
    """The server in the environment of a user who may write to ``out`` and do nothing else."""
    known = [
        {"name": name, "actions": actions}
        | (
            {}
            if name == "anonymous"
            else {"credentials": [{"accessKey": name, "secretKey": f"{name}-secret"}]}
        )
        for name, actions in IDENTITIES.items()
    ]
    (place / "s3.json").write_text(json.dumps({"identities": known}))
    url, stop = start_seaweed(place / "s3", options=[f"-s3.config={place / 's3.json'}"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        for name, value in credentials("owner").items():
            patch.setenv(name, value)
        files = {name: (place / "images" / name).read_bytes() for name in NAMES}
        for name, data in files.items():
            open_store("s3://photos/some folder+").put(name, data)
        open_store("s3://photos/tars").put("all of them + %.tar", tar_bytes(files))
        open_store("s3://out").put("first", b"")
        for name, value in credentials("user").items():
            patch.setenv(name, value)
        yield patch
    stop()


def settings(place: Path, images: str, output: str) -> EncodeConfig:
    config = {"shard_size": 4, "batch_size": 4, "vae": str(place / "vae"), "output": output}
    return EncodeConfig(images=ImagesConfig(uri=images, size=SIZE, heldout=0.3), actors=2, **config)


def shards(output: str) -> dict[str, bytes]:
    store = open_store(output)
    return {info.key: store.get(info.key) for info in store.list("latents/")}


def test_any_name_is_read_from_a_public_bucket(place: Path, s3: object, one_ray: object) -> None:
    local = encode(settings(place, str(place / "images"), str(place / "latents")))
    wanted = shards(str(place / "latents"))
    keys = [key for data in wanted.values() for key in read_latent_shard(data).keys]
    assert keys == sorted(NAMES)
    assert local.facts.bad == 0
    with pytest.raises(UserError, match="is not permitted to these credentials"):
        encode(settings(place, "s3://photos/some folder+", "s3://out/refused"))
    for images, output in [
        ("s3://anonymous@photos/some folder+", "s3://out/lat ents+ü"),
        ("s3://anonymous@photos/tars/all of them + %.tar", "s3://out/tar"),
    ]:
        assert encode(settings(place, images, output)).facts == local.facts
        assert shards(output) == wanted
    with pytest.raises(UserError, match="not open to everybody"):
        encode(settings(place, "s3://anonymous@out/tar", "s3://out/refused"))
