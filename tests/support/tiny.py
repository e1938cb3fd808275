"""Images, a VAE and a model small enough for tests of the stages.

They are untrained, since only their numbers are compared.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_dit.config import DiTConfig, DiTSizeConfig, SamplerConfig, VAESizeConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import DiT
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.formats.registry import output_format
from ray_dit.ledger.job import Job
from ray_dit.ledger.results import Facts
from ray_dit.results import ModelResult
from ray_dit.storage.local import TEMP
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE
from tests.support.results import vae_result

SIZE = 16
VAE_SIZE = VAESizeConfig(block_out_channels=(4, 4), norm_num_groups=2, mid_block_add_attention=False)
MODEL = DiTSizeConfig(patch_size=2, hidden_size=16, depth=1, num_heads=2)
SAMPLER = SamplerConfig(num_inference_steps=3)


def write_pictures(folder: Path, counts: Mapping[str, int], size: int = SIZE) -> None:
    """Noise, of another brightness each class, ``counts`` by class."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = np.random.default_rng((label, number)).integers(0, 100, (size, size, 3), dtype=np.uint8)
            Image.fromarray(picture + np.uint8(60 * label)).save(folder / name / f"{number:02d}.png")


def write_vae(folder: Path) -> VAE:
    """A folder as train-vae leaves it, and the VAE in it."""
    vae = VAE.create(VAE_SIZE)
    job = Job.open(open_store(str(folder)), "train-vae", {"made": "by a test"})
    for name, data in vae.files().items():
        job.put(name, name, data, Facts())
    job.finish(vae_result())
    return vae


def write_model(folder: Path, names: tuple[str, ...], *, dropout: float = 0.1, **fields: Any) -> DiT:
    """A model folder as train leaves it, with random weights everywhere, and its transformer.

    ``dropout`` of labels; ``fields`` of its ModelConfig.
    """
    import torch

    known = MODEL.model_dump(exclude={"preset"}, exclude_none=True) | {"class_dropout_prob": dropout}
    shape = DiTConfig(**known, input_size=SIZE // 2, in_channels=4, num_classes=len(names))
    model = DiT(shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # the paper's initial model says 0 whatever it is asked
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    known = {"model": shape, "latents": LatentsConfig(image_size=SIZE), "sampler": SAMPLER}
    settings = ModelConfig(**known | fields)
    job = Job.open(open_store(str(folder)), "model", {"made": "by a test"})
    vae = VAE.create(VAE_SIZE).files()
    for key, data in model_objects(settings, model.state_dict(), Labels(names), vae, "card").items():
        job.put(key.replace("/", "-"), key, data, Facts())
    job.finish(ModelResult())
    return model


def shard_bytes(
    images: Sequence[bytes], labels: Sequence[int], ids: Sequence[int], classes: Sequence[str]
) -> bytes:
    """An object of a dataset as generate writes it."""
    shard = ImageShard(images, np.array(labels), np.array(ids), tuple(classes))
    ((_, data),) = output_format("parquet").write(shard, "shard").items()
    return data


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every object that has no clock in it; temp files of killed writers are no objects."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_runs" not in path.parts and not path.name.startswith(TEMP)
    }


def flip_bit(path: Path) -> None:
    """Changes the lowest bit of the byte in the middle of a file; gives an empty one a byte."""
    data = bytearray(path.read_bytes()) or bytearray(1)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def kinds_of_machines(folder: Path) -> int:
    """How many kinds of machines made the objects of a job."""
    return len(list((folder / "_runs/writers").iterdir()))


def times(folder: Path) -> dict[str, int]:
    """When every file was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
