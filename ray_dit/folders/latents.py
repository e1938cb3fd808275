"""Random access to the rows of a latents folder.

Its shards are laid out once as memory-mapped arrays on the local disk.

Training visits rows in a permuted order, a few KB each; reading them from Parquet objects one by one would
wait for storage at every step. The copy is keyed by the manifest's hash and appears by one rename, so it is
whole or not there.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_dit.formats.latents import read_latent_shard
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.storage.store import Store


@dataclass(frozen=True)
class LatentRows:
    """All rows in shard order.

    ``moments`` is a float16 memory map [N, V, 2C, H, W], V = 2 with mirror images.
    """

    moments: NDArray[np.float16]
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]


def cache_folder() -> Path:
    """Where local copies go: $RAY_DIT_CACHE, or ray-dit in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray-dit"
    return Path(os.environ.get("RAY_DIT_CACHE") or default)


def open_latent_rows(
    store: Store, shards: Iterable[Marker[LatentShardFacts]], name: str, cache: Path
) -> LatentRows:
    """Opens the rows of ``shards``, given by their markers, copying them to ``cache/name`` if need be."""
    folder = cache / "latents" / name
    if not folder.is_dir():
        _copy(store, list(shards), folder)
    return LatentRows(
        moments=np.load(folder / "moments.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy"),
        heldout=np.load(folder / "heldout.npy"),
    )


def _copy(store: Store, shards: list[Marker[LatentShardFacts]], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        _fill(store, shards, building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first with the same bytes
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fill(store: Store, shards: list[Marker[LatentShardFacts]], folder: Path) -> None:
    total = sum(shard.facts.rows for shard in shards)
    moments: NDArray[np.float16] | None = None
    labels, heldout = np.empty(total, np.int64), np.empty(total, np.bool_)
    first = 0
    for entry in shards:
        shard = read_latent_shard(store.get(entry.key), store.where(entry.key))
        views = [shard.moments] if shard.moments_mirror is None else [shard.moments, shard.moments_mirror]
        if moments is None:
            shape = (total, len(views), *shard.moments.shape[1:])
            moments = np.lib.format.open_memmap(folder / "moments.npy", "w+", np.float16, shape)
        rows = slice(first, first + len(shard.keys))
        moments[rows] = np.stack(views, axis=1)
        labels[rows], heldout[rows] = shard.labels, shard.heldout
        first = rows.stop
    if moments is not None:
        moments.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "heldout.npy", heldout)
