"""Any other fsspec file system as a store, in the weaker mode; knows nothing of jobs.

``put`` asks the file system to create the object (``mode="create"``); some check and write in one step
(gcsfs), others in two, so that of two writers at the same moment the last one's content may stay. Every
writer of a key writes the same bytes, so that this mode loses the alarm, not the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from ray_dit.errors import Conflict, NotFound, StoreFailure, UserError, first_message
from ray_dit.storage.store import ObjectInfo, Store, checked_key


@dataclass(frozen=True)
class FsspecStore(Store):
    """Objects under a URI of a file system that fsspec finds by its scheme."""

    def get(self, key: str) -> bytes:
        return self._found(key, "cat_file")

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._found(key, "cat_file", start, start + length)

    def open_file(self, key: str) -> BinaryIO:
        return self._found(key, "open", "rb")

    def head(self, key: str) -> ObjectInfo | None:
        try:
            info = self._found(key, "info")
        except NotFound:
            return None
        return None if info["type"] == "directory" else self._info(info)

    def put(self, key: str, data: bytes) -> bool:
        files, path = self._files(key)
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            if files.exists(path):
                return self._same_or_conflict(key, data)
            files.pipe_file(path, data, mode="create")
        except FileExistsError:
            return self._same_or_conflict(key, data)
        return True

    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        info = self.head(key)
        if info is None or info.etag != if_match:
            raise Conflict(f"{self.where(key)} was changed by another writer; look again before replacing it")
        files, path = self._files(key)
        files.pipe_file(path, data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        files, root = self._files()
        folder = prefix.rpartition("/")[0]
        found = files.find(f"{root}/{folder}".rstrip("/"), detail=True)
        infos = (self._info(info) for _, info in sorted(found.items()))
        yield from (info for info in infos if info.key.startswith(prefix))

    def delete(self, key: str) -> None:
        files, path = self._files(key)
        if files.exists(path):
            files.rm_file(path)

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
            # over http, fsspec says so whatever went wrong
            cause = error.__cause__
            reason = f" ({first_message(cause)})" if isinstance(cause, Exception) else ""
            raise NotFound(f"{self.where(key)} does not exist{reason}") from error
        except OSError as error:
            raise StoreFailure(f"{self.where(key)} could not be read: {error}") from error

    def _info(self, info: dict[str, Any]) -> ObjectInfo:
        files, root = self._files()
        return ObjectInfo(
            info["name"].removeprefix(root).lstrip("/"), info["size"], files.ukey(info["name"]), None
        )
