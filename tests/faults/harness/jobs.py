"""The jobs that are disturbed: three stages, so small that a run takes seconds; knows no faults."""

from pathlib import Path
from typing import Literal

import numpy as np

from ray_dit.folders.dataset import read_shard
from ray_dit.formats.latents import read_latent_shard
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support import tiny

Stage = Literal["encode", "generate", "train"]
STAGES: tuple[Stage, ...] = ("encode", "generate", "train")
CLASSES = {"dark": 16, "light": 16}
IMAGES = sum(CLASSES.values())
SHARD = 4

SETTINGS: dict[Stage, dict[str, object]] = {
    "encode": {
        "images.uri": "{inputs}/images",
        "images.size": tiny.SIZE,
        "images.heldout": 0.2,
        "vae": "{inputs}/vae",
        "shard-size": SHARD,
        "batch-size": SHARD,
        "actors": 2,
    },
    "generate": {
        "model": "{inputs}/model",
        "num-images": IMAGES,
        "shard-size": SHARD,
        "batch-size": SHARD,
        "actors": 2,
    },
    "train": {
        "latents": "{inputs}/latents",
        "model.hidden-size": 16,
        "model.depth": 1,
        "model.num-heads": 2,
        "optimizer.learning-rate": 0.002,
        "steps": 20,
        "batch-size": 8,
        "num-workers": 2,
        "log-every": 5,
        "checkpoint-every": 5,
        "grid-per-class": 1,
        "sampler.num-inference-steps": 3,
    },
}


def command(stage: Stage, inputs: str, output: str, address: str) -> list[str]:
    """The words after ``ray-dit``; the same bytes whatever ``inputs``, ``output`` and ``address`` are."""
    settings = SETTINGS[stage] | {"output": output, "address": address}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [stage, *(word.format(inputs=inputs) for word in words)]


def write_inputs(folder: Path) -> None:
    """Images, a VAE and a model; latents are what `encode` makes of the first two."""
    tiny.write_pictures(folder / "images", CLASSES)
    tiny.write_vae(folder / "vae")
    tiny.write_model(folder / "model", tuple(CLASSES))


def upload(folder: Path, store: Store) -> None:
    """Every file of a folder as an object."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path.read_bytes())


def check_ids(stage: Stage, output: str) -> None:
    """AssertionError unless every image, row or checkpoint is there once, by what is in the objects."""
    store = open_store(output)
    if stage == "encode":
        shards = [read_latent_shard(store.get(info.key)) for info in store.list("latents/")]
        keys = [key for shard in shards for key in shard.keys]
        wanted = [f"{name}/{number:02d}.png" for name, count in CLASSES.items() for number in range(count)]
        assert keys == sorted(wanted), f"{output} holds other rows: {sorted(set(keys) ^ set(wanted))}"
    elif stage == "generate":
        ids = np.concatenate([read_shard(store, info.key).ids for info in store.list("data/")])
        assert ids.tolist() == list(range(IMAGES)), f"{output} holds other images: {ids.tolist()}"
    else:
        assert any(True for _ in store.list("loss-")), f"{output} has no loss.jsonl"
