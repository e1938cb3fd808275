"""Every reader of bytes that come from elsewhere, as a function of bytes alone, and good bytes for it."""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors.torch import save

from ray_dit.cli import COMMANDS
from ray_dit.cli.recipe import read_recipe
from ray_dit.config import DiTConfig, EncodeConfig, ImportConfig
from ray_dit.core.dit import DiT
from ray_dit.core.media import UnreadableImage, decode, encode
from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import Checkpoint, read_checkpoint
from ray_dit.folders.dataset import read_shard
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.latents import open_latent_rows
from ray_dit.folders.model import read_model, read_safetensors
from ray_dit.folders.requests import read_requests
from ray_dit.folders.sources import open_images
from ray_dit.formats.checkpoint import CheckpointFacts, checkpoint_bytes
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.label_file import read_label_file
from ray_dit.formats.labels import Labels
from ray_dit.formats.latent_layout import index_spans, pieces_sha256
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.formats.registry import format_of, input_format, output_format
from ray_dit.formats.texts import Texts
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.ledger.results import Facts, Marker
from ray_dit.results import DatasetResult, LatentShardFacts, UsedSampler
from ray_dit.storage.open import open_store
from tests.support import tiny
from tests.support.layouts import parquet_bytes, samples, tar_bytes, zip_bytes

LISTING = "manifest/objects.jsonl"


@dataclass(frozen=True)
class Reader:
    """A reader, what it may raise, and good inputs."""

    read: Callable[[bytes], object]
    good: Callable[[], Sequence[bytes]]
    allowed: tuple[type[BaseException], ...] = (UserError,)
    is_json: bool = False
    megabytes: float = 100.0
    """What it may take for inputs of a few KB."""
    good_is_read: bool = field(default=True)


@cache
def scratch() -> Path:
    """A folder of this process."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def pictures() -> list[bytes]:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    found: list[bytes] = []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"):
        with io.BytesIO() as sink:
            image.save(sink, kind)
            found.append(sink.getvalue())
    for mode in ("P", "L", "1", "RGBA", "LA"):
        with io.BytesIO() as sink:
            image.convert(mode).save(sink, "PNG", **({"transparency": 1} if mode in ("P", "L") else {}))
            found.append(sink.getvalue())
    deep = np.linspace(0, 1, 24 * 40).reshape(24, 40)
    for values in ((deep * 65535).astype(np.uint16), deep.astype(np.float32), (deep * 1e9).astype(np.int32)):
        with io.BytesIO() as sink:
            PIL.Image.fromarray(values).save(sink, "TIFF")
            found.append(sink.getvalue())
    return found


def latents() -> list[bytes]:
    moments = np.random.default_rng(0).normal(size=(5, 8, 4, 4)).astype(np.float16)
    keys, labels = [f"a/{row}.png" for row in range(5)], np.arange(5)
    shard = LatentShard(keys, labels, labels > 3, moments, moments[..., ::-1])
    return [latent_shard_bytes(shard), latent_shard_bytes(shard, by_row=False)]


def read_latents(data: bytes) -> object:
    """As train opens a shard that an earlier version wrote: whole, for its local copy."""
    return taken(data)


def read_rows(data: bytes) -> object:
    """As train opens a shard whose rows it reads one by one; where their index lies is in the marker."""
    whole = latents()[0]
    spans = index_spans(whole)
    pieces = {start: data[start : end + (end == len(whole)) * len(data)] for start, end in spans}
    ends = ((start, start + len(piece)) for start, piece in pieces.items())
    return taken(data, index_sha256=pieces_sha256(pieces), index_spans=tuple(ends))


def taken(data: bytes, **known: Any) -> object:
    """All rows of a shard."""
    store = open_store(str(scratch() / "latents"))
    write("latents/a.parquet", data)
    facts = LatentShardFacts(
        shard=0, rows=5, seen=5, bad=(), train_rows=4, moments_sha256="", sum=(), sum_squares=(), **known
    )
    sha256 = hashlib.sha256(data).hexdigest()  # as whoever sent the bytes would write it down
    marker = Marker(key="a.parquet", bytes=len(data), sha256=sha256, facts=facts)
    with tempfile.TemporaryDirectory(dir=scratch()) as cache_folder:
        rows = open_latent_rows(store, [marker], "x", Path(cache_folder), most=0 if known else None)
        try:
            count = len(rows.labels)
            return rows.take(np.arange(count), np.zeros(count, np.int64)).shape
        finally:
            rows.close()


def write(name: str, data: bytes) -> Path:
    """A file of the scratch folder, replaced."""
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def datasets() -> list[bytes]:
    return [tiny.shard_bytes([b"one", b"three"], [0, 1], [7, 8], ("a", "b"))]


def read_dataset(data: bytes) -> object:
    write("dataset/a.parquet", data)
    return read_shard(open_store(str(scratch() / "dataset")), "a.parquet")


def shard_of(name: str) -> dict[str, bytes]:
    """The objects of a shard in a format."""
    entry = output_format(name)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    images = [encode(image, entry.encodings[0]) for image in pixels]
    settings = {"guidance_scale": np.array([1.0, 2.0, 4.0]), "sampler": np.array(["ddim", "unipc", "ddim"])}
    labels, ids = np.array([0, 1, 0]), np.array([5, 6, 7])
    shard = ImageShard(images, labels, ids, ("a", "b"), settings=settings, encoding=entry.encodings[0])
    return entry.write(shard, "shard")


def shard_in(name: str) -> Callable[[bytes], object]:
    """A shard whose first object holds these bytes, the others being good."""
    first, *others = shard_of(name)

    def read(data: bytes) -> object:
        objects = {first: data, **{key: shard_of(name)[key] for key in others}}
        for key, content in objects.items():
            write(f"shards-{name}/{key}", content)
        return read_shard(open_store(str(scratch() / f"shards-{name}")), first)

    return read


REQUESTS = {
    "requests.jsonl": [
        b'{"label": "a", "seed": 3}\n{"label": 1, "guidance_scale": 1.5, "sampler": "ddim"}\n'
    ],
    "requests.csv": [b"label,seed,num_inference_steps\na,7,\n1,,25\n"],
}


def read_list(name: str) -> Callable[[bytes], object]:
    """A list of images to be made."""
    return lambda data: read_requests(str(write(name, data)), Labels(("a", "b")))


def plans() -> list[bytes]:
    keys, labels = Texts.of(("a/1", "a/2", "b/3")), np.array([0, 0, 1])
    return [ImagePlan("x", 16, ("a", "b"), keys, labels, labels > 0, "0" * 64).to_bytes()]


def weights() -> list[bytes]:
    return [save({"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.float16)})]


def read_weights(data: bytes) -> object:
    write("weights/model.safetensors", data)
    return read_safetensors(open_store(str(scratch() / "weights")), "model.safetensors")


def checkpoints() -> list[bytes]:
    return [
        checkpoint_bytes({"model.a": torch.ones(3, 2), "log": torch.zeros(0, 2)}, CheckpointFacts(step=5))
    ]


def read_training_state(data: bytes) -> object:
    write(f"run/{Checkpoint(5).key()}", data)
    return read_checkpoint(open_store(str(scratch() / "run")), Checkpoint(5))


def torch_files() -> list[bytes]:
    size = DiTConfig(hidden_size=8, depth=1, num_heads=2, input_size=4, in_channels=4, num_classes=3)
    state = DiT(size).state_dict()
    found: list[bytes] = []
    arguments = argparse.Namespace(lr=np.float64(1), seen=np.arange(3), data=Path("data"))
    for args, zipped in itertools.product((None, arguments), (True, False)):
        with io.BytesIO() as sink:
            torch.save({"ema": state, "args": args}, sink, _use_new_zipfile_serialization=zipped)
            found.append(sink.getvalue())
    return found


def read_pt(data: bytes) -> object:
    from ray_dit.checkpoints.importing import import_checkpoint

    with tempfile.TemporaryDirectory(dir=scratch()) as output:
        return import_checkpoint(
            ImportConfig(source=str(write("model.pt", data)), output=output, num_heads=2)
        )


def recipes() -> list[bytes]:
    text = """
encode: &base
  images: {uri: demo/images, size: 16, heldout: 0.2}
  vae: demo/vae
  output: demo/latents
  mirror: true
  shard_size: 8
  batch_size: 4
train: {latents: x, output: y, optimizer: {betas: [0.9, 0.99]}}
"""
    return [text.encode()]


def read_yaml(data: bytes) -> object:
    return read_recipe(str(write("recipe.yaml", data)), "encode", EncodeConfig, COMMANDS)


@cache
def dataset_job() -> dict[str, bytes]:
    """The objects of a finished job by key."""
    folder = scratch() / "good-job"
    job = Job.open(open_store(str(folder)), "generate", {"config": {"seed": 1}, "libraries": {"torch": "1"}})
    for shard in range(2):
        job.put(f"{shard:05d}", f"data/{shard:05d}.bin", bytes(10), Facts.model_validate({"rows": 5}))
    sampler = UsedSampler(name="ddim", num_inference_steps=3, guidance_scale=1.0)
    job.finish(
        DatasetResult(rows=10, classes=("a",), labels=(0,), image_size=16, sampler=sampler, pixels_sha256="0")
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def job_with(key: str) -> Callable[[bytes], object]:
    """Everything that reads a job's folder, one of whose objects holds other bytes."""

    def read(data: bytes) -> object:
        folder = f"job-{key.replace('/', '-')}"
        for name, good in dataset_job().items():
            write(f"{folder}/{name}", data if name == key else good)
        store = open_store(str(scratch() / folder))
        found: list[Any] = [str(problem) for problem in verify(store)]
        manifest = read_manifest(store, DatasetResult)
        found += manifest_objects(store, manifest, Facts)
        found += Job(store, "generate", "0").markers(Facts)
        return found

    return read


@cache
def model_files() -> dict[str, bytes]:
    """The objects of a model folder by key."""
    folder = scratch() / "good-model"
    tiny.write_model(folder, ("a", "b"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_with(key: str) -> Callable[[bytes], object]:
    """A model folder that is opened as generate opens it, one of whose objects holds other bytes."""

    def read(data: bytes) -> object:
        folder = f"model-{key.replace('/', '-')}"
        for name, good in model_files().items():
            write(f"{folder}/{name}", data if name == key else good)
        model = read_model(str(scratch() / folder))
        model.check_vae()
        return model.state_dict()

    return read


def read_diffusers_config(data: bytes) -> object:
    from ray_dit.checkpoints.importing import import_checkpoint

    write("pipeline/config.json", data)
    with tempfile.TemporaryDirectory(dir=scratch()) as output:
        return import_checkpoint(ImportConfig(source=str(scratch() / "pipeline"), output=output))


def diffusers_configs() -> list[bytes]:
    settings = {
        "_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8,
        "in_channels": 4, "out_channels": 8, "num_layers": 1, "sample_size": 4, "patch_size": 2,
        "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero",
    }  # fmt: skip
    return [json.dumps(settings).encode()]


def read_vae_config(data: bytes) -> object:
    from ray_dit.vae import find_vae

    write("vae/config.json", data)
    return find_vae(str(scratch() / "vae"))


def labels() -> list[bytes]:
    return [Labels(("a, b", "c"), ("n1", "n2")).to_json()]


PICTURES = {f"{name}/{number}.png": bytes([number]) * 300 for name in ("cat", "dog") for number in range(3)}
ARCHIVES = {
    "tar": (".tar", [tar_bytes(PICTURES), tar_bytes(PICTURES, format=tarfile.PAX_FORMAT)]),
    "tars": (".tar", [tar_bytes({f"{name}.tar": tar_bytes(PICTURES) for name in ("cat", "dog")})]),
    "webdataset": (".tar", [tar_bytes(samples(PICTURES))]),
    "zip": (".zip", [zip_bytes(PICTURES), zip_bytes(PICTURES, zipfile.ZIP_STORED)]),
    "parquet": (".parquet", [parquet_bytes(PICTURES), parquet_bytes(PICTURES, compression="zstd")]),
}
"""What the images of a format end in, and good ones."""


def archive_of(name: str) -> Callable[[bytes], object]:
    """All that reads images of a format: what it is, where they lie, and each of them."""

    def read(data: bytes) -> object:
        place = write(f"archive-{name}/x{ARCHIVES[name][0]}", data)
        source, entry = open_images(str(place)), input_format(name)
        format_of(source)
        listing = entry.list_images(source)
        for row, key in enumerate(listing.keys):
            with contextlib.suppress(UnreadableImage):
                entry.read_image(source, key, {at: column[row] for at, column in listing.places.items()})
        return listing

    return read


LABELS = {
    "labels.csv": [b"file_name,label\na.png,cat\nb.png,dog\n", b"ImageId,PredictionString\na,n01 1 2 3 4\n"],
    "labels.jsonl": [b'{"file_name": "a.png", "label": 3}\n{"file_name": "b.png", "label": "x"}\n'],
    "labels.json": [b'{"labels": [["a.png", 3], ["b.png", 4]]}', b'{"a.png": "cat"}'],
    "labels.txt": [b"a.png cat\nb.png dog\n", b"1\n2\n"],
}


def read_classes(name: str) -> Callable[[bytes], object]:
    """The classes of two images by a file of labels."""
    return lambda data: read_label_file(data, name).classes_of(["a.png", "b.png"])


READERS: dict[str, Reader] = {
    **{f"archive {name}": Reader(archive_of(name), lambda name=name: ARCHIVES[name][1]) for name in ARCHIVES},
    **{
        name: Reader(
            read_classes(name),
            lambda name=name: LABELS[name],
            is_json=name.endswith(".json"),
            good_is_read=False,
        )
        for name in LABELS
    },
    "image": Reader(lambda data: decode(data, 16), pictures, (UnreadableImage,), megabytes=700),
    "image 256": Reader(lambda data: decode(data, 256), pictures, (UnreadableImage,), megabytes=700),
    "latents": Reader(read_latents, latents),
    "latents by row": Reader(read_rows, lambda: latents()[:1]),
    "dataset": Reader(read_dataset, datasets),
    **{
        f"shard {name}": Reader(shard_in(name), lambda name=name: [next(iter(shard_of(name).values()))])
        for name in ("webdataset", "npz", "folder")
    },
    **{
        name: Reader(read_list(name), lambda name=name: REQUESTS[name], good_is_read=False)
        for name in REQUESTS
    },
    "plan": Reader(lambda data: ImagePlan.from_bytes(data, "x"), plans),
    "safetensors": Reader(read_weights, weights),
    "checkpoint": Reader(read_training_state, checkpoints),
    "torch file": Reader(read_pt, torch_files),
    "recipe": Reader(read_yaml, recipes),
    "labels": Reader(Labels.from_json, labels, (ValueError,), is_json=True),
    "diffusers config": Reader(read_diffusers_config, diffusers_configs, is_json=True, good_is_read=False),
    "vae config": Reader(read_vae_config, lambda: [b'{"_class_name": "AutoencoderKL"}'], is_json=True),
    **{
        f"job {key}": Reader(job_with(key), lambda key=key: [dataset_job()[key]], is_json=key != LISTING)
        for key in ("_job.json", "manifest.json", LISTING, "_markers/00000.json")
    },
    **{
        f"model {key}": Reader(model_with(key), lambda key=key: [model_files()[key]], is_json=True)
        for key in ("config.json", "labels.json", "_job.json", "manifest.json")
    },
}
