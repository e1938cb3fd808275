"""encode against a loop that shares none of its code: PIL, a crop written here, diffusers' AutoencoderKL.

Of RGB and grey images of many shapes, and of drawings with transparent pixels as emoji are.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw, ImageFilter

from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.formats.latents import LatentShard, read_latent_shard
from ray_dit.stages.encode import encode
from tests.support.tiny import SIZE, write_vae

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

SHAPES = [(16, 16), (17, 16), (40, 33), (33, 90), (64, 32), (300, 200), (9, 12), (5, 31), (150, 131)]
CLASSES = ("1", "2", "10", "b", "ü")
"""As people sort them."""


def photo(number: int, shape: tuple[int, int]) -> Image.Image:
    """Noise of several scales, as photographs have."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 255, (3, 3, 3), dtype=np.uint8)).resize(shape)
    fine = Image.fromarray(random.integers(0, 255, (shape[1], shape[0], 3), dtype=np.uint8))
    return Image.blend(coarse, fine, 0.3)


def emoji(number: int) -> Image.Image:
    """A shape with soft edges on nothing; what is under clear pixels is any colour, as in files."""
    random = np.random.default_rng(number)
    left, top, right, bottom = 2, 3, *random.integers(15, 29, 2).tolist()
    alpha = Image.new("L", (32, 32))
    ImageDraw.Draw(alpha).ellipse((left, top, right, bottom), fill=255)
    image = photo(number, (32, 32))
    image.putalpha(alpha.filter(ImageFilter.GaussianBlur(1.5)))
    return image


def encoded(
    images: Path, vae: Path, output: Path, **fields: Any
) -> tuple[list[LatentShard], tuple[str, ...]]:
    settings = ImagesConfig(uri=str(images), size=SIZE, heldout=0.3)
    config = EncodeConfig(
        images=settings, vae=str(vae), output=str(output), shard_size=20, batch_size=8, actors=2, **fields
    )
    classes = encode(config).facts.classes
    return [read_latent_shard(path.read_bytes()) for path in sorted((output / "latents").iterdir())], classes


def middle_square(image: Image.Image) -> Image.Image:
    """ADM's crop: halved while both sides allow it, bicubic to size, and the middle of that."""
    while image.width >= 2 * SIZE and image.height >= 2 * SIZE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = SIZE / min(image.width, image.height)
    image = image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def moments_of(vae: AutoencoderKL, square: Image.Image) -> np.ndarray:
    pixels = torch.tensor(np.asarray(square), dtype=torch.float32) / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels.permute(2, 0, 1)[None]).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1)[0].numpy()


def test_latents_labels_and_keys_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    write_vae(tmp_path / "vae")
    for number in range(45):
        name = CLASSES[number % len(CLASSES)]
        image, suffix = photo(number, SHAPES[number % len(SHAPES)]), ("png", "jpg", "webp", "bmp")[number % 4]
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        (image.convert("L") if number % 7 == 0 else image).save(tmp_path / f"images/{name}/{number}.{suffix}")
    shards, classes = encoded(tmp_path / "images", tmp_path / "vae", tmp_path / "latents")
    assert classes == CLASSES
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    paths = sorted(path.relative_to(tmp_path / "images").as_posix() for path in tmp_path.glob("images/*/*"))
    assert [key for shard in shards for key in shard.keys] == paths
    assert [CLASSES[label] for shard in shards for label in shard.labels] == [
        path.split("/")[0] for path in paths
    ]
    for shard in shards:
        for row, key in enumerate(shard.keys):
            square = middle_square(Image.open(tmp_path / "images" / key).convert("RGB"))
            mirror = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for found, image in ((shard.moments, square), (shard.moments_mirror, mirror)):
                assert found is not None
                np.testing.assert_allclose(
                    found[row], moments_of(vae, image), rtol=2e-3, atol=2e-3, err_msg=key
                )


def on_white(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    return pixels[:, :, :3] * pixels[:, :, 3:] / 255 + 255 - pixels[:, :, 3:]


def stored(image: Image.Image, kind: str) -> bytes:
    sink = io.BytesIO()
    match kind:
        case "grey":
            image.convert("LA").save(sink, "PNG")
        case "palette":
            image.quantize(60).save(sink, "PNG")
        case "webp":
            image.save(sink, "WEBP", lossless=True, exact=True)
        case _:
            image.save(sink, "PNG")
    return sink.getvalue()


def test_emoji_are_encoded_as_they_look_on_white(tmp_path: Path) -> None:
    write_vae(tmp_path / "vae")
    white = {}
    for number in range(30):
        kind = ("rgba", "grey", "palette", "webp")[number % 4]
        data = stored(emoji(number), kind)
        key = f"{number % 3}/{number:02d}.png"
        white[key] = on_white(Image.open(io.BytesIO(data)))
        for folder, content in (
            ("clear", data),
            ("white", stored(Image.fromarray(white[key].round().astype(np.uint8)), "png")),
        ):
            (tmp_path / folder / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / key).write_bytes(content)
    shards, classes = encoded(tmp_path / "clear", tmp_path / "vae", tmp_path / "latents")
    assert [key for shard in shards for key in shard.keys] == sorted(white)
    on_paper, _ = encoded(tmp_path / "white", tmp_path / "vae", tmp_path / "paper")
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    for shard, paper in zip(shards, on_paper, strict=True):
        np.testing.assert_allclose(shard.moments, paper.moments, rtol=2e-3, atol=2e-3)
        for row, key in enumerate(shard.keys):
            square = middle_square(Image.fromarray(white[key].round().astype(np.uint8)))
            np.testing.assert_allclose(shard.moments[row], moments_of(vae, square), rtol=2e-3, atol=2e-3)
