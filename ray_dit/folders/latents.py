"""Random access to the rows of a latents folder, from the first moment on and fast after a while.

Training visits rows in a permuted order, 16 to 64 KB each. What must be known of all of them is read first
(``latent_index.py``); then shards are copied to the local disk in threads (``latent_copies.py``), and a row
whose shard is not there yet is read from storage by range. Which it was changes no byte: each row is held
against its checksum when it is used, as disks forget.
"""

import hashlib
import os
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ray_dit.core.units import bytes_text
from ray_dit.errors import UserError
from ray_dit.folders.latent_copies import Fetch, LocalCopies, copy_path, locked, new_file
from ray_dit.folders.latent_index import THREADS, LatentIndex, Shards, load_index, read_index, read_rows
from ray_dit.ledger.restore import read_twice
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.storage.store import CHUNK, Store

_OF_BEFORE = ("moments.npy", "rows.npz")
"""What earlier versions copied latents to."""


@dataclass(frozen=True)
class _Place:
    """Where the moments of a row lie, in one view."""

    shard: int
    start: int
    check: int


class LatentRows:
    """All rows in shard order; ``take`` may be called from several threads at once."""

    def __init__(self, store: Store, shards: Shards, index: LatentIndex, copies: LocalCopies) -> None:
        self._store, self._shards, self._index, self._copies = store, shards, index, copies
        self._row_bytes = 2 * int(np.prod(index.shape))
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="latent rows")
        self._end = weakref.finalize(self, _close, copies, self._pool)
        self.read = 0
        """Rows so far whose shard was not there yet."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of each row."""
        return self._index.labels

    @property
    def heldout(self) -> NDArray[np.bool_]:
        """Whether no model trains on a row."""
        return self._index.heldout

    @property
    def views(self) -> int:
        """2 with mirror images, else 1."""
        return self._index.checks.shape[1]

    @property
    def local(self) -> int:
        """How many shards have been copied."""
        return self._copies.local

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float16]:
        """Moments [B, 2C, H, W] of some rows, each in one view.

        Damaged if a row is not what was written, and other UserErrors of storage, also those that ended the
        copying.
        """
        self._copies.check()
        taken = np.empty((len(rows), self._row_bytes), np.uint8)
        far: list[tuple[int, _Place]] = []
        for at, place in enumerate(self._places(rows, views)):
            data = self._near(place)
            if data is None:
                far.append((at, place))
            else:
                taken[at] = np.frombuffer(data, np.uint8)
        read = self._pool.map(self._far, [place for _, place in far])
        for (at, _), data in zip(far, read, strict=True):
            taken[at] = np.frombuffer(data, np.uint8)
        self.read += len(far)
        return taken.view(np.float16).reshape(len(rows), *self._index.shape)

    def close(self) -> None:
        """Ends the copying, which need not be complete; rows can't be taken any more."""
        self._end()

    def _places(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Iterable[_Place]:
        index = self._index
        blocks = np.searchsorted(index.firsts, rows, side="right") - 1
        starts = index.starts[blocks, views] + (rows - index.firsts[blocks]) * self._row_bytes
        columns = (index.shards[blocks], starts, index.checks[rows, views])
        return map(_Place, *(column.tolist() for column in columns))

    def _near(self, place: _Place) -> bytes | None:
        """The row by its shard's copy; None where there is none, or it is damaged and has been dropped."""
        data = self._copies.read(place.shard, place.start, self._row_bytes)
        if data is None or self._is_whole(data, place):
            return data
        self._copies.drop(place.shard)
        return None

    def _far(self, place: _Place) -> bytes:
        """The row from storage."""
        marker = self._shards[place.shard]
        if not self._index.by_row[place.shard]:
            return self._copied(place)

        def read() -> bytes | None:
            data = self._store.get_range(marker.key, place.start, self._row_bytes)
            return data if self._is_whole(data, place) else None

        return read_twice(self._store, marker.key, read)

    def _copied(self, place: _Place) -> bytes:
        """The row of a shard that can't be read by row and is copied now."""
        for _ in range(2):
            try:
                self._copies.copy(place.shard)
            except OSError as error:
                raise _no_copy(self._store.uri, self._copies.folder, error) from error
            data = self._near(place)
            if data is not None:
                return data
        raise UserError(
            f"what is written to {self._copies.folder} comes back as something else: set RAY_DIT_CACHE to a "
            "folder on another disk"
        )

    def _is_whole(self, data: bytes, place: _Place) -> bool:
        return len(data) == self._row_bytes and zlib.crc32(data) == place.check


def _close(copies: LocalCopies, pool: ThreadPoolExecutor) -> None:
    copies.close()
    pool.shutdown(wait=False, cancel_futures=True)


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
    *,
    most: int | None = None,
) -> LatentRows:
    """Opens the rows of ``shards``, given by their markers, and begins to copy these to ``cache``.

    They go to ``latents/name`` there, at most ``most`` bytes of them; by default all but a twentieth of the
    disk. ``held_back``: keys of rows that are held out whatever their shards say, the same for the same
    ``name``. Damaged if what is read is not what was written; UserError where nothing may be written to
    ``cache``, or there is no space for what must be known of all rows.
    """
    markers, folder = list(shards), cache / "latents" / name
    _check_size(store, markers, most)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        index = _index(store, markers, folder, held_back)
        copies = LocalCopies(folder, index.sizes.tolist(), _fetch_from(store, markers, index), most=most)
        copies.start()
    except OSError as error:
        raise _no_copy(store.uri, cache, error) from error
    return LatentRows(store, markers, index, copies)


def _no_copy(latents: str, cache: Path, error: OSError) -> UserError:
    return UserError(
        f"the latents of {latents} can't be copied to {cache} ({error.strerror or error}): set "
        "RAY_DIT_CACHE to a folder on a local disk that may be written to and has space for them"
    )


def _check_size(store: Store, shards: Shards, most: int | None) -> None:
    whole = sum(marker.bytes for marker in shards if marker.facts.index_sha256 is None)
    if most is not None and whole > most:
        raise UserError(
            f"{bytes_text(whole)} of the latents in {store.uri} were written by an earlier version, whose "
            "shards must be copied whole: give a larger --cache-size, or encode the images again"
        )


def _index(store: Store, shards: Shards, folder: Path, held_back: Collection[str]) -> LatentIndex:
    """What was found by an earlier opening, or is found now, by one process for all that wait."""
    path = folder / "index.npz"
    index = load_index(path, shards)
    if index is not None:
        return index
    with locked(folder / "index.lock", wait=True):
        index = load_index(path, shards)
        if index is None:
            for name in _OF_BEFORE:
                with suppress(FileNotFoundError):
                    (folder / name).unlink()
            index = read_index(
                store, shards, held_back, keep=lambda number, data: _keep(folder, number, data)
            )
            index.save(path)
        return index


def _keep(folder: Path, number: int, data: bytes) -> None:
    with new_file(copy_path(folder, number)) as file:
        file.write(data)


def _fetch_from(store: Store, shards: Shards, index: LatentIndex) -> Fetch:
    """Shards as they are, or the rows of those that can't be read by row."""

    def fetch(number: int, file: BinaryIO, is_over: Callable[[], bool]) -> bool:
        marker = shards[number]
        if not index.by_row[number]:
            file.write(read_rows(store, marker)[-1])
            return True

        def copy() -> bool | None:
            file.seek(0)
            file.truncate()
            digest = hashlib.sha256()
            for start in range(0, marker.bytes, CHUNK):
                if is_over():
                    return False
                data = store.get_range(marker.key, start, min(CHUNK, marker.bytes - start))
                digest.update(data)
                file.write(data)
            return True if digest.hexdigest() == marker.sha256 else None

        return read_twice(store, marker.key, copy)

    return fetch
