"""An object as a seekable file that is read by ranges; knows no storage."""

import io
from collections.abc import Callable
from typing import Any, BinaryIO

BUFFER = 1 << 20
"""Bytes read at once, at least."""


def range_file(read: Callable[[int, int], bytes], size: int) -> BinaryIO:
    """A reader of ``size`` bytes, of which ``read(start, length)`` gives a range."""
    return io.BufferedReader(_Reader(read, size), buffer_size=BUFFER)


class _Reader(io.RawIOBase):
    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        data = self._read(self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
