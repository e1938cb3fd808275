"""Objects under a URI: get, put-if-absent, replace-if-match, list, delete, hash.

Knows nothing of shards or jobs.

An object is a key (a relative path with ``/``) and whole bytes. ``put`` never overwrites: of any number of
writers of one key, in any processes, exactly one writes, and a reader sees nothing or one writer's whole
content. What a kind of storage must do for that is in docs/store.md, and ``checked`` tries it on the real
target.

Three kinds of storage: ``local.py`` (a folder), ``s3.py`` (S3 and everything that speaks it), ``other.py``
(what else fsspec knows, in the weaker mode); ``open.py`` chooses by the URI. Errors are those of
``ray_dit.errors``.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

from ray_dit.errors import Conflict

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 16 << 20
"""Bytes read at once where an object is streamed."""
LARGE = 64 << 20
"""Bytes of a file from which on it is stored without being in memory."""
UNKNOWN_SIZE = -1
"""That of an object in a listing that tells none, as a page of links on the web."""


@dataclass(frozen=True)
class ObjectInfo:
    """What storage says of an object without reading it."""

    key: str
    size: int
    etag: str | None
    """Changes whenever the content is written anew; for ``replace(if_match=...)``."""
    sha256: str | None
    """Hex digest its writer stored with it; None where storage keeps none, and in listings."""


@dataclass(frozen=True)
class Store(ABC):
    """A folder of objects under a URI; picklable, cheap to make, usable from any process or thread."""

    uri: str
    """Absolute path, or URI with scheme; no slash at the end."""

    def child(self, prefix: str) -> Self:
        """The store of the objects below ``prefix``, with the same settings."""
        return replace(self, uri=f"{self.uri.rstrip('/')}/{checked_key(prefix.strip('/'))}")

    def __str__(self) -> str:
        return self.uri

    def where(self, key: str) -> str:
        """An object's full URI, for messages."""
        return f"{self.uri}/{key}"

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The whole object; NotFound."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer at the end of the object; NotFound."""

    @abstractmethod
    def get_version(self, key: str, span: tuple[int, int] | None = None) -> tuple[bytes, ObjectInfo]:
        """The object's bytes, or those of ``span`` (start and length), and which version they are of.

        As ``get`` and ``get_range``, with what storage says of the version that was read; NotFound.
        """

    @abstractmethod
    def open_file(self, key: str) -> BinaryIO:
        """A seekable reader of one version of the object; NotFound."""

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """What storage says of the object, None if it is not there."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> bool:
        """Writes the object if the key is free.

        True: we wrote it, also where the reply to an earlier attempt was lost. False: these very bytes were
        there. Conflict: other bytes are there; nothing was changed.
        """

    def put_file(self, key: str, file: BinaryIO) -> bool:
        """As ``put``, of all that a file of this machine holds, which may be more than memory does."""
        data = FileBytes(file)
        return self._put_large(key, data) if len(data) > LARGE else self.put(key, data.whole)

    def _put_large(self, key: str, data: "FileBytes") -> bool:
        """As ``put``; by default from memory after all."""
        return self.put(key, data.whole)

    @abstractmethod
    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        """Replaces the object whose etag is ``if_match``; Conflict if it is another by now, or gone."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose keys start with ``prefix``, in the target's key order, streamed.

        There are none where nothing is. The order is that of the whole key, save on SeaweedFS, which sorts
        segment by segment; streamed means that memory holds one page (S3: 1,000 objects) or the names of one
        folder.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes the object; no error if it is absent."""

    def refuse_read_only(self) -> None:
        """UserError for storage that can only be read; nothing is asked of it."""
        return

    def sha256(self, key: str) -> str:
        """Hex digest of the object's bytes, read anew and streamed; NotFound."""
        digest = hashlib.sha256()
        with self.open_file(key) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def local_path(self, key: str) -> Path | None:
        """The file that holds the object, to map it into memory; None where storage has no files."""
        return None

    def checked(self) -> Self:
        """This store, or its weaker mode where a trial shows that conditions are ignored (docs/store.md)."""
        return self

    def clean(self, older_than: float) -> Iterator[str]:
        """Removes what killed writers left, temp files and unfinished uploads, and yields what it removed.

        It must be older than ``older_than`` seconds, which keeps what a live writer has begun.
        """
        return iter(())

    def _same_or_conflict(self, key: str, data: "bytes | FileBytes") -> bool:
        """False if ``data`` is what the occupied key holds, else Conflict: the end of a put that lost."""
        info = self.head(key)
        if info is None:
            raise Conflict(
                f"{self.where(key)} cannot be written: a folder has that name, or something else that is no "
                "file, or it was removed just now"
            )
        stored = info.sha256 or self.sha256(key)
        ours = sha256_of(data)
        if stored != ours:
            raise Conflict(
                f"{self.where(key)} already holds other bytes (sha256 {stored[:12]}, not {ours[:12]});"
                " write to another folder or remove this one"
            )
        return False


@dataclass(frozen=True)
class FileBytes:
    """An open file as bytes that are read where they are wanted, in any thread."""

    file: BinaryIO

    def __len__(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def __getitem__(self, span: slice) -> bytes:
        return os.pread(self.file.fileno(), span.stop - span.start, span.start)

    @property
    def whole(self) -> bytes:
        """All of it."""
        return b"".join(chunks_of(self))


def sha256_of(data: bytes | FileBytes) -> str:
    """Hex digest; no more than a chunk of a file is in memory."""
    digest = hashlib.sha256()
    for chunk in chunks_of(data):
        digest.update(chunk)
    return digest.hexdigest()


def chunks_of(data: bytes | FileBytes) -> Iterator[bytes]:
    """The bytes, those of a file in pieces."""
    if isinstance(data, bytes):
        yield data
    else:
        yield from (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))


def checked_key(key: str) -> str:
    """``key`` if it is a relative path without empty, ``.`` or ``..`` segments, else ValueError."""
    if not key or any(segment in ("", ".", "..") for segment in key.split("/")):
        raise ValueError(f"not an object key: {key!r}")
    return key


def ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int = 16) -> Iterator[R]:
    """``map`` with threads.

    Results come in order, with at most twice ``threads`` items in flight, whatever their number.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
