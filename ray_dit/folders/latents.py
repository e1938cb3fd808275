"""Random access to the rows of a latents folder.

Its shards are laid out once as memory-mapped arrays on the local disk.

Training visits rows in a permuted order, a few KB each; reading them from Parquet objects one by one would
wait for storage at every step. The copy is keyed by the manifest's hash and appears by one rename, so it is
whole or not there. Disks forget: each row has a checksum, which is compared when it is used.
"""

import contextlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_dit.errors import UserError
from ray_dit.formats.latents import read_latent_shard
from ray_dit.ledger.restore import read_whole
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.storage.store import Store


class DamagedCopy(RuntimeError):
    """The local copy was not what had been copied; it has been removed, and the next opening copies anew.

    No user's error: workers that are started again go on by themselves.
    """


@dataclass(frozen=True)
class LatentRows:
    """All rows in shard order.

    ``moments`` is a float16 memory map [N, V, 2C, H, W], V = 2 with mirror images.
    """

    folder: Path
    moments: NDArray[np.float16]
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    checks: NDArray[np.uint32]
    """Of each row and view of ``moments`` [N, V]: CRC-32 of its bytes."""

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float16]:
        """Moments [B, 2C, H, W] of some rows, each in one view; DamagedCopy if they are not as copied."""
        taken = self.moments[rows, views]
        if _checks(taken) != self.checks[rows, views].tolist():
            shutil.rmtree(self.folder, ignore_errors=True)
            raise DamagedCopy(f"the local copy of the latents in {self.folder} was damaged: it is made anew")
        return taken


def cache_folder() -> Path:
    """Where local copies go: $RAY_DIT_CACHE, or ray-dit in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray-dit"
    return Path(os.environ.get("RAY_DIT_CACHE") or default)


def open_latent_rows(
    store: Store,
    shards: Iterable[Marker[LatentShardFacts]],
    name: str,
    cache: Path,
    held_back: Collection[str] = (),
) -> LatentRows:
    """Opens the rows of ``shards``, given by their markers, copying them to ``cache/name`` if need be.

    ``held_back``: keys of rows that are held out whatever their shards say, the same for the same ``name``.
    Damaged if a shard that is copied is not what its marker says; UserError where there is no space for the
    copy, or it may not be written there.
    """
    folder = cache / "latents" / name
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        return _opened(folder)
    # Not there, damaged, or copied by a version that wrote no checksums.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _copy(store, list(shards), folder, held_back)
    except OSError as error:
        raise UserError(
            f"the latents of {store.uri} can't be copied to {cache} ({error.strerror or error}): set "
            "RAY_DIT_CACHE to a folder on a local disk that may be written to and has space for them"
        ) from error
    return _opened(folder)


def _opened(folder: Path) -> LatentRows:
    """A copy; any of several exceptions if it is damaged, as far as that shows before rows are read."""
    with np.load(folder / "rows.npz") as rows:  # whose parts have checksums of their own
        labels, heldout, checks = rows["labels"], rows["heldout"], rows["checks"]
    moments = np.load(folder / "moments.npy", mmap_mode="r")
    if moments.dtype != np.float16 or moments.shape[:2] != checks.shape:
        raise ValueError("the parts of the copy do not fit together")
    return LatentRows(folder, moments, labels, heldout, checks)


def _checks(moments: NDArray[np.float16]) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(row).data) for row in moments]


def _copy(
    store: Store, shards: list[Marker[LatentShardFacts]], folder: Path, held_back: Collection[str]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        _fill(store, shards, building, held_back)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first with the same bytes
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _reserve(path: Path) -> None:
    """Takes the space that a file has by its length; OSError where there is none.

    What is written through a map to a full disk would end the process instead.
    """
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _fill(
    store: Store, shards: list[Marker[LatentShardFacts]], folder: Path, held_back: Collection[str]
) -> None:
    total = sum(shard.facts.rows for shard in shards)
    moments: NDArray[np.float16] | None = None
    labels, heldout = np.empty(total, np.int64), np.empty(total, np.bool_)
    checks: list[NDArray[np.uint32]] = []
    first = 0
    for entry in shards:
        shard = read_latent_shard(read_whole(store, entry.key, entry.sha256), store.where(entry.key))
        views = [shard.moments] if shard.moments_mirror is None else [shard.moments, shard.moments_mirror]
        if moments is None:
            shape = (total, len(views), *shard.moments.shape[1:])
            moments = np.lib.format.open_memmap(folder / "moments.npy", "w+", np.float16, shape)
            _reserve(folder / "moments.npy")
        rows = slice(first, first + len(shard.keys))
        moments[rows] = np.stack(views, axis=1)
        checks.append(np.array([_checks(view) for view in views], np.uint32).reshape(len(views), -1).T)
        labels[rows], heldout[rows] = shard.labels, shard.heldout
        if held_back:
            heldout[rows] |= np.array([key in held_back for key in shard.keys], np.bool_)
        first = rows.stop
    if moments is not None:
        moments.flush()
    np.savez(folder / "rows.npz", labels=labels, heldout=heldout, checks=np.concatenate(checks))
