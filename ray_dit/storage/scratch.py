"""A store for trials: takes every object, remembers its size and hash, and keeps none of any size.

Small objects can be read again in the process that put them, as a job's own notes must be. Nothing leaves the
process: where a trial writes from several, each knows its own.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from ray_dit.errors import NotFound
from ray_dit.storage.store import ObjectInfo, Store

KEPT_BYTES = 1 << 16
"""Largest object that is kept."""


@dataclass(frozen=True)
class ScratchStore(Store):
    """Objects that nobody will read; a copy in another process starts with what this one had."""

    sizes: dict[str, int] = field(default_factory=dict[str, int], compare=False)
    """Bytes of every object that was put, by full key."""
    small: dict[str, bytes] = field(default_factory=dict[str, bytes], compare=False)
    """Content of the small ones, by full key."""
    hashes: dict[str, str] = field(default_factory=dict[str, str], compare=False)
    """sha256 of every object that was put, by full key."""

    def get(self, key: str) -> bytes:
        try:
            return self.small[self.where(key)]
        except KeyError:
            raise NotFound(f"{self.where(key)} was not kept: this store is for trials") from None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def get_version(self, key: str, span: tuple[int, int] | None = None) -> tuple[bytes, ObjectInfo]:
        data = self.get(key)
        start, length = span or (0, len(data))
        return data[start : start + length], _info(key, data)

    def sha256(self, key: str) -> str:
        """Of what was put, kept or not; NotFound."""
        try:
            return self.hashes[self.where(key)]
        except KeyError:
            raise NotFound(f"{self.where(key)} does not exist") from None

    def open_file(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def head(self, key: str) -> ObjectInfo | None:
        data = self.small.get(self.where(key))
        return None if data is None else _info(key, data)

    def put(self, key: str, data: bytes) -> bool:
        if self.head(key) is not None:
            return self._same_or_conflict(key, data)
        self.sizes[self.where(key)] = len(data)
        self.hashes[self.where(key)] = hashlib.sha256(data).hexdigest()
        if len(data) <= KEPT_BYTES:
            self.small[self.where(key)] = data
        return True

    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        self.delete(key)
        self.put(key, data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = self.where("")
        keys = sorted(key.removeprefix(start) for key in self.small if key.startswith(start + prefix))
        return (info for key in keys if (info := self.head(key)) is not None)

    def delete(self, key: str) -> None:
        self.small.pop(self.where(key), None)
        self.sizes.pop(self.where(key), None)
        self.hashes.pop(self.where(key), None)


def _info(key: str, data: bytes) -> ObjectInfo:
    return ObjectInfo(key, len(data), None, hashlib.sha256(data).hexdigest())
