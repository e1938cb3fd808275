"""Any other fsspec file system as a store, in the weaker mode; knows nothing of jobs.

``put`` asks the file system to create the object (``mode="create"``); some check and write in one step
(gcsfs), others in two, so that of two writers at the same moment the last one's content may stay. Every
writer of a key writes the same bytes, so that this mode loses the alarm, not the data.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Self, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from ray_dit.errors import Conflict, NotFound, StoreFailure, UserError, first_message
from ray_dit.storage.store import UNKNOWN_SIZE, ObjectInfo, Store, checked_key

READ_ONLY = ("http", "https", "github", "git", "zip", "tar", "data")
"""Schemes under which nothing can be written, or not an object at a time."""


@dataclass(frozen=True)
class FsspecStore(Store):
    """Objects under a URI of a file system that fsspec finds by its scheme."""

    def get(self, key: str) -> bytes:
        return self._found(key, "cat_file")

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._found(key, "cat_file", start, start + length)

    def get_version(self, key: str, span: tuple[int, int] | None = None) -> tuple[bytes, ObjectInfo]:
        data = self.get(key) if span is None else self.get_range(key, *span)
        info = self.head(key)  # afterwards: bytes of before are never taken for those of a later version
        if info is None:
            raise NotFound(f"{self.where(key)} does not exist")
        return data, info

    def open_file(self, key: str) -> BinaryIO:
        return self._found(key, "open", "rb")

    def head(self, key: str) -> ObjectInfo | None:
        try:
            info = self._found(key, "info")
        except NotFound:
            return None
        return None if info["type"] == "directory" else self._info(info)

    def put(self, key: str, data: bytes) -> bool:
        self.refuse_read_only()
        files, path = self._files(key)
        try:
            with self._saying(key):
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                if not files.exists(path):
                    files.pipe_file(path, data, mode="create")
                    return True
        except FileExistsError:
            pass
        return self._same_or_conflict(key, data)

    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        info = self.head(key)
        if info is None or info.etag != if_match:
            raise Conflict(f"{self.where(key)} was changed by another writer; look again before replacing it")
        self.refuse_read_only()
        files, path = self._files(key)
        with self._saying(key):
            files.pipe_file(path, data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        files, root = self._files()
        folder = prefix.rpartition("/")[0]
        with self._saying(prefix):
            found = files.find(f"{root}/{folder}".rstrip("/"), detail=True)
        infos = (self._info(info) for _, info in sorted(found.items()))
        yield from (info for info in infos if info.key.startswith(prefix))

    def delete(self, key: str) -> None:
        files, path = self._files(key)
        with self._saying(key):
            if files.exists(path):
                files.rm_file(path)

    def checked(self) -> Self:
        self.refuse_read_only()
        return self

    def refuse_read_only(self) -> None:
        """See ``Store``."""
        if self.uri.partition("://")[0] in READ_ONLY:
            raise UserError(f"{self.uri} can be read but not written: give a path, s3://... or other storage")

    def _files(self, key: str | None = None) -> tuple[Any, str]:
        """The file system, and the object's path in it or the root's."""
        try:
            files, root = cast(Any, fsspec).core.url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"{self.uri} cannot be opened ({error}): give a path, s3://... or another URI that fsspec "
                "knows"
            ) from error
        root = root.rstrip("/")
        return files, f"{root}/{checked_key(key)}" if key is not None else root

    def _found(self, key: str, method: str, *arguments: Any) -> Any:
        files, path = self._files(key)
        try:
            return getattr(files, method)(path, *arguments)
        except (FileNotFoundError, IsADirectoryError) as error:
            cause = error.__cause__ if self.uri.startswith("http") else None
            if isinstance(cause, Exception) and getattr(cause, "status", None) not in (404, 410):
                raise self._said(key, cause) from error  # over http, fsspec says so whatever went wrong
            raise NotFound(f"{self.where(key)} does not exist") from error
        except Exception as error:
            raise self._said(key, error) from error

    @contextmanager
    def _saying(self, key: str) -> Generator[None]:
        """Turns what the file system refuses into a sentence; absence and presence are left to the caller."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, UserError):
            raise
        except Exception as error:
            raise self._said(key, error) from error

    def _said(self, key: str, error: Exception) -> UserError:
        """The sentence for an error of the file system's own client, which may be of any class."""
        where = self.where(key).rstrip("/")
        if isinstance(error, NotImplementedError):
            return UserError(f"{where} is on storage that cannot do this ({error}): take other storage")
        if isinstance(error, PermissionError):
            return UserError(f"{where} is not permitted to this user: check the credentials or take another")
        return StoreFailure(
            f"{where} could not be read or written ({type(error).__name__}: {first_message(error)}): check "
            "the address, the credentials and the network, then run again"
        )

    def _info(self, info: dict[str, Any]) -> ObjectInfo:
        files, root = self._files()
        size = UNKNOWN_SIZE if info["size"] is None else info["size"]
        return ObjectInfo(info["name"].removeprefix(root).lstrip("/"), size, files.ukey(info["name"]), None)
