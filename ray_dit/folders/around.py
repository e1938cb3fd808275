"""A source that is another look at a store: what reads it differently derives from this one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ray_dit.storage.store import ObjectInfo, Store


@dataclass(frozen=True)
class Around:
    """A ``Source`` of a store's objects as they are."""

    store: Store

    @property
    def uri(self) -> str:
        return self.store.uri

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.store.list(prefix)

    def get(self, key: str) -> bytes:
        return self.store.get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.store.get_range(key, start, length)

    def open_file(self, key: str) -> BinaryIO:
        return self.store.open_file(key)

    def local_path(self, key: str) -> Path | None:
        return self.store.local_path(key)
