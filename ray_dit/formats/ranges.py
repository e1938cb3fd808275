"""An object as a file that can only be read, by requests of ranges; knows no format.

Requests grow while one range follows another closely, and shrink after a leap. Memory holds one range.
"""

import io

from ray_dit.formats.rows import OBJECT, Place, Source

SMALL, LARGE = 16 << 10, 8 << 20
"""Bytes asked for at once, at first and at most."""
NEAR = 2 << 20
"""A gap over which reading on is cheaper than another request, where storage is far."""
LONGEST_READ = 64 << 20
"""What a reader of a header may want at once; more is a lying length."""


def read_place(source: Source, place: Place) -> bytes:
    """The bytes of an image that is a range of its object, by one request."""
    return source.get_range(str(place[OBJECT]), int(place["start"]), int(place["length"]))


class RangeFile(io.RawIOBase):
    """The bytes of an object in ``[start, start + length)``."""

    def __init__(self, source: Source, key: str, start: int, length: int) -> None:
        self._source, self._key, self._start, self._length = source, key, start, length
        self._near = SMALL if source.local_path(key) is not None else NEAR
        self._at = self._first = 0
        self._held, self._window = b"", SMALL // 2

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if origin + offset < 0:
            raise ValueError("a place before the beginning")
        self._at = origin + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end; ValueError for more than a header may have."""
        left = max(0, self._length - self._at)
        size = left if size < 0 else min(size, left)
        if size > LONGEST_READ:
            raise ValueError(f"{size} bytes at once")
        if not self._first <= self._at <= self._at + size <= self._first + len(self._held):
            self._fetch(size)
        offset = self._at - self._first
        data = self._held[offset : offset + size]
        self._at += len(data)
        return data

    def _fetch(self, size: int) -> None:
        gap = self._at - (self._first + len(self._held))
        self._window = min(2 * self._window, LARGE) if -LARGE <= gap <= self._near else SMALL
        wanted = min(max(size, self._window), self._length - self._at)
        self._held = self._source.get_range(self._key, self._start + self._at, wanted)
        self._first = self._at
