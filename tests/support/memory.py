"""A source of images in memory, without a store."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ray_dit.errors import NotFound


@dataclass(frozen=True)
class Info:
    """An object as listed."""

    key: str
    size: int
    etag: str | None = None


@dataclass(frozen=True)
class Memory:
    """Objects in a dict; a ``Source``."""

    objects: Mapping[str, bytes]
    uri: str = "memory"

    def list(self, prefix: str = "") -> Iterator[Info]:
        """In key order."""
        return (Info(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix))

    def get(self, key: str) -> bytes:
        """The object."""
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """A part of the object."""
        return self.get(key)[start : start + length]

    def open_file(self, key: str) -> BinaryIO:
        """A reader of the object."""
        return io.BytesIO(self.get(key))

    def local_path(self, key: str) -> Path | None:
        """It has no file."""
        return None
