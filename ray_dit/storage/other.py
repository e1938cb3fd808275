"""Any other fsspec file system as a store, in the weaker mode; knows nothing of jobs.

``put`` asks the file system to create the object (``mode="create"``); some check and write in one step (gcsfs), others
in two, so that of two writers at the same moment the last one's content may stay. Every writer of a key writes the same
bytes, so that this mode loses the alarm, not the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from ray_dit.errors import Conflict, NotFound, StoreFailure, UserError
from ray_dit.storage.store import ObjectInfo, Store, checked_key


@dataclass(frozen=True)
class FsspecStore(Store):
    """Objects under a URI of a file system that fsspec finds by its scheme."""

    def get(self, key: str) -> bytes:
        return self._found(key, lambda files, path: cast(bytes, files.cat_file(path)))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._found(key, lambda files, path: cast(bytes, files.cat_file(path, start, start + length)))

    def open_file(self, key: str) -> BinaryIO:
        return self._found(key, lambda files, path: cast(BinaryIO, files.open(path, "rb")))

    def head(self, key: str) -> ObjectInfo | None:
        try:
            return self._found(key, lambda files, path: self._info(files, files.info(path)))
        except NotFound:
            return None

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
        files, root = self._files("")
        folder = prefix.rpartition("/")[0]
        found = cast(dict[str, dict[str, Any]], files.find(f"{root}/{folder}".rstrip("/"), detail=True))
        infos = (self._info(files, info) for _, info in sorted(found.items()))
        yield from (info for info in infos if info.key.startswith(prefix))

    def delete(self, key: str) -> None:
        files, path = self._files(key)
        if files.exists(path):
            files.rm_file(path)

    def _files(self, key: str) -> tuple[Any, str]:
        try:
            files, root = cast(tuple[Any, str], fsspec.core.url_to_fs(self.uri))
        except (ValueError, ImportError) as error:
            raise UserError(f"{self.uri} cannot be opened: {error}") from error
        root = root.rstrip("/")
        return files, f"{root}/{checked_key(key)}" if key else root

    def _found(self, key: str, read: Any) -> Any:
        files, path = self._files(key)
        try:
            return read(files, path)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFound(f"{self.where(key)} does not exist") from error
        except OSError as error:
            raise StoreFailure(f"{self.where(key)} could not be read: {error}") from error

    def _info(self, files: Any, info: dict[str, Any]) -> ObjectInfo:
        if info["type"] == "directory":
            raise FileNotFoundError(info["name"])
        root = self._files("")[1]
        return ObjectInfo(info["name"].removeprefix(root).lstrip("/"), info["size"], files.ukey(info["name"]), None)
