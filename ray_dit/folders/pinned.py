"""Objects that are read only as a plan has them: one that is gone or another by now is told, not read.

A source as the formats see it, around a store. Knows nothing of images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from ray_dit.errors import Conflict, NotFound
from ray_dit.folders.around import Around
from ray_dit.formats.image_format import version_of
from ray_dit.storage.range_file import range_file
from ray_dit.storage.store import UNKNOWN_SIZE, ObjectInfo

Reason = Literal["gone", "changed"]


class NotAsPlanned(Exception):
    """An object is not there, or not the one that was planned."""

    def __init__(self, key: str, reason: Reason) -> None:
        super().__init__(f"{key} is {reason}")
        self.key, self.reason = key, reason


@dataclass(frozen=True)
class Pinned(Around):
    """A source of the objects of one planned image; whatever is read of them must be of the planned version.

    NotAsPlanned where it is not. Every other error is the store's: what can't be read now is not gone.
    """

    size: int = UNKNOWN_SIZE
    """Bytes of the object, unless that is not known."""
    version: int = 0
    """As ``version_of`` gives it; 0 where nothing stands for the content."""

    def get(self, key: str) -> bytes:
        return self._read(key, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._read(key, (start, length)) if length > 0 else b""

    def open_file(self, key: str) -> BinaryIO:
        if self.size == UNKNOWN_SIZE:
            try:
                return self.store.open_file(key)
            except NotFound as error:
                raise NotAsPlanned(key, "gone") from error
        return range_file(lambda start, length: self.get_range(key, start, length), self.size)

    def local_path(self, key: str) -> Path | None:
        """None: what is mapped into memory is read without a look at its version."""
        return None

    def _read(self, key: str, span: tuple[int, int] | None) -> bytes:
        try:
            data, info = self._version(key, span)
        except NotFound as error:
            raise NotAsPlanned(key, "gone") from error
        if self.size not in (UNKNOWN_SIZE, info.size) or self._is_other(info):
            raise NotAsPlanned(key, "changed")
        return data

    def _version(self, key: str, span: tuple[int, int] | None) -> tuple[bytes, ObjectInfo]:
        try:
            return self.store.get_version(key, span)
        except Conflict:  # replaced while it was read: the new one may be the planned one
            return self.store.get_version(key, span)

    def _is_other(self, info: ObjectInfo) -> bool:
        there = version_of(self.store, info)
        return bool(self.version and there) and there != self.version
