"""What must be known of the rows of a latents folder before any of them is read: labels, places, checksums.

Read from all shards by ranges, a hundredth of their bytes, and kept as one file beside their local copies.
Each part is held against the hash in its shard's marker; shards of earlier versions, which have none, are
read whole. Knows nothing of when shards are copied.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ray_dit.folders.latent_copies import new_file
from ray_dit.formats.deterministic import damaged as not_as_written
from ray_dit.formats.latent_layout import (
    RowFacts,
    ShardLayout,
    described,
    key_array,
    pieces_sha256,
    read_pieces,
)
from ray_dit.formats.latents import read_latent_shard
from ray_dit.ledger.restore import read_twice, read_whole
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.storage.store import Store, ahead

THREADS = 32
"""Requests under way: storage answers many at once, each after a while."""
WHOLE = 4
"""Shards that are read whole at once: each takes three times its size in memory."""
Shards = Sequence[Marker[LatentShardFacts]]


@dataclass(frozen=True)
class LatentIndex:
    """All rows in shard order, in blocks that lie one after the other in their shard's local copy.

    That of a shard that can be read by row has the object's bytes; of others it has the rows alone, the first
    view's and then the second's.
    """

    shape: tuple[int, ...]
    """[2C, H, W] of a row's moments, which are float16."""
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    checks: NDArray[np.uint32]
    """CRC-32 of each row and view, [N, V]."""
    firsts: NDArray[np.int64]
    """First row of each block, [G]."""
    shards: NDArray[np.int64]
    """Number of each block's shard, [G]."""
    starts: NDArray[np.int64]
    """Where each block's first row begins in that shard's copy, in each view, [G, V]."""
    sizes: NDArray[np.int64]
    """Bytes of each shard's copy, [S]."""
    by_row: NDArray[np.bool_]
    """Whether a shard's rows can be read one by one, [S]."""

    def save(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _NAMES}
        with new_file(path) as file:
            np.savez(file, shape=np.array(self.shape), **arrays)  # each with a checksum of its own


_NAMES = ("labels", "heldout", "checks", "firsts", "shards", "starts", "sizes", "by_row")


def load_index(path: Path, shards: Shards) -> LatentIndex | None:
    """What ``save`` wrote for these shards; None where it is missing, damaged or of another version."""
    try:
        with np.load(path) as file:
            index = LatentIndex(tuple(file["shape"].tolist()), *(file[name] for name in _NAMES))
    except Exception:  # libraries raise many kinds for a file that is damaged; all of it has checksums
        return None
    rows = sum(marker.facts.rows for marker in shards)
    fits = index.checks.shape[:1] == index.labels.shape == (rows,) and len(index.sizes) == len(shards)
    return index if fits else None


def read_index(
    store: Store, shards: Shards, held_back: Collection[str], keep: Callable[[int, bytes], None]
) -> LatentIndex:
    """Reads the index of ``shards``; those in ``held_back`` are held out, whatever their shards say.

    Shards that can't be read by row are read whole, and ``keep`` is given the number and the local copy of
    each. Damaged for what is not what was written; NotFound and other UserErrors of storage.
    """
    later = [number for number, marker in enumerate(shards) if marker.facts.index_sha256 is None]
    now = [number for number, marker in enumerate(shards) if marker.facts.index_sha256 is not None]
    back: object = key_array(held_back)

    def whole(number: int) -> tuple[ShardLayout, RowFacts, int]:
        layout, facts, data = read_rows(store, shards[number])
        keep(number, data)
        return layout, facts.held_back(back), len(data)

    def by_range(number: int) -> tuple[ShardLayout, RowFacts, int]:
        layout, facts = _read_by_range(store, shards[number])
        return layout, facts.held_back(back), shards[number].bytes

    found = dict(zip(now, ahead(by_range, now, threads=THREADS), strict=True))
    found |= zip(later, ahead(whole, later, threads=WHOLE), strict=True)
    return _joined(store, shards, [found[number] for number in range(len(shards))])


def read_rows(store: Store, marker: Marker[LatentShardFacts]) -> tuple[ShardLayout, RowFacts, bytes]:
    """What is known of a shard that is read whole, and its local copy."""
    return described(read_latent_shard(read_whole(store, marker.key, marker.sha256), store.where(marker.key)))


def _read_by_range(store: Store, marker: Marker[LatentShardFacts]) -> tuple[ShardLayout, RowFacts]:
    """All of a shard but its moments, in two requests."""

    def read() -> dict[int, bytes] | None:
        spans = marker.facts.index_spans
        pieces = {start: store.get_range(marker.key, start, end - start) for start, end in spans}
        return pieces if pieces_sha256(pieces) == marker.facts.index_sha256 else None

    try:
        return read_pieces(read_twice(store, marker.key, read), marker.bytes)
    except ValueError as error:
        raise not_as_written(store.where(marker.key), error) from error


def _joined(store: Store, shards: Shards, found: Sequence[tuple[ShardLayout, RowFacts, int]]) -> LatentIndex:
    """The indexes of all shards as one; UserError where they do not fit together."""
    shape, views = found[0][0].shape, found[0][1].checks.shape[1]
    for marker, (layout, facts, _) in zip(shards, found, strict=True):
        counts = {marker.facts.rows, layout.rows, len(facts.labels)}
        if len(counts) > 1 or layout.shape != shape or facts.checks.shape[1] != views:
            raise not_as_written(store.where(marker.key), ValueError("its rows are not those of its marker"))
    bounds = np.cumsum([0, *(layout.rows for layout, _, _ in found)])
    blocks = [len(layout.firsts) for layout, _, _ in found]
    return LatentIndex(
        shape=shape,
        labels=np.concatenate([facts.labels for _, facts, _ in found]),
        heldout=np.concatenate([facts.heldout for _, facts, _ in found]),
        checks=np.concatenate([facts.checks for _, facts, _ in found]),
        firsts=np.concatenate(
            [layout.firsts + first for (layout, _, _), first in zip(found, bounds, strict=False)]
        ),
        shards=np.repeat(np.arange(len(shards)), blocks),
        starts=np.concatenate([layout.starts for layout, _, _ in found]),
        sizes=np.array([size for _, _, size in found], np.int64),
        by_row=np.array([marker.facts.index_sha256 is not None for marker in shards]),
    )
