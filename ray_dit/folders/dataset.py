"""A generated dataset opened from a store: its shards as rows, whatever format they are in."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ray_dit.folders.around import Around
from ray_dit.formats.image_format import ImageShard
from ray_dit.formats.registry import written_in
from ray_dit.ledger.restore import read_whole
from ray_dit.storage.store import Store


def read_shard(store: Store, key: str, sha256: str | None = None) -> ImageShard:
    """The shard at ``key`` of the dataset in ``store``; NotFound, and Damaged where it lacks its hash."""
    source = store if sha256 is None else _Whole(store, key, sha256)
    return written_in(key).read(source, [key])


@dataclass(frozen=True)
class _Whole(Around):
    """A source whose object ``key`` is read whole, once, into memory, and has the hash."""

    key: str
    sha256: str

    def get(self, key: str) -> bytes:
        return read_whole(self.store, key, self.sha256) if key == self.key else self.store.get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def open_file(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def local_path(self, key: str) -> Path | None:
        return None
