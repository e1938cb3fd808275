"""A folder of files as a store: temp file, fsync, link; knows nothing of networks.

A key becomes visible by ``link(2)``, which fails if the name is taken, so it is put-if-absent with whole
content. What a killed writer leaves is a temp file, which no listing shows and ``clean`` removes.
"""

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ray_dit.errors import Conflict, NotFound, StoreFailure, UserError
from ray_dit.storage.store import ObjectInfo, Store, checked_key

TEMP = ".put-"
"""Temp files start with it; objects never do."""

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@dataclass(frozen=True)
class LocalStore(Store):
    """Files under a folder, which the first put makes."""

    def get(self, key: str) -> bytes:
        with self.open_file(key) as file:
            return file.read()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self.open_file(key) as file:
            file.seek(start)
            return file.read(length)

    def open_file(self, key: str) -> BinaryIO:
        try:
            with self._saying(key):
                return open(self._path(key), "rb")
        except _ABSENT as error:
            raise NotFound(f"{self.where(key)} does not exist") from error

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._saying(key):
                path = self._path(key)
                return None if path.is_dir() else _info(key, path.stat())
        except _ABSENT:
            return None

    def put(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._saying(key):
            if path.exists():
                return self._same_or_conflict(key, data)
            temp = _write_temp(path, data)
            try:
                linked = _link(temp, path)
            finally:
                temp.unlink(missing_ok=True)
            if not linked:
                return self._same_or_conflict(key, data)
            _fsync(path.parent)
        return True

    def replace(self, key: str, data: bytes, *, if_match: str) -> None:
        path = self._path(key)
        with self._saying(key):
            temp = _write_temp(path, data)
            try:
                with _locked(path.parent):
                    info = self.head(key)
                    if info is None or info.etag != if_match:
                        raise Conflict(
                            f"{self.where(key)} was changed by another writer; look again before replacing it"
                        )
                    os.replace(temp, path)
                    _fsync(path.parent)
            finally:
                temp.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, _, name = prefix.rpartition("/")
        return self._walk(Path(self.uri) / folder, f"{folder}/" if folder else "", name)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(*_ABSENT), self._saying(key), _locked(path.parent):
            path.unlink()

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def clean(self, older_than: float) -> Iterator[str]:
        oldest = time.time() - older_than
        for folder, _, names in os.walk(self.uri):
            for path in (Path(folder, name) for name in names if name.startswith(TEMP)):
                with suppress(*_ABSENT), self._saying(str(path)):
                    if path.stat().st_mtime < oldest:
                        path.unlink()
                        yield str(path)

    def _path(self, key: str) -> Path:
        return Path(self.uri) / checked_key(key)

    def _walk(self, folder: Path, prefix: str, start: str) -> Iterator[ObjectInfo]:
        """A folder's objects in the order of whole keys: a sub-folder sorts as its name and a slash."""
        try:
            with self._saying(prefix), os.scandir(folder) as entries:
                names = sorted(
                    entry.name + "/" * entry.is_dir()
                    for entry in entries
                    if entry.name.startswith(start) and not entry.name.startswith(TEMP)
                )
        except _ABSENT:
            return
        for name in names:
            if name.endswith("/"):
                yield from self._walk(folder / name, prefix + name, "")
            elif (info := self.head(prefix + name)) is not None:
                yield info

    @contextmanager
    def _saying(self, key: str) -> Generator[None]:
        """Turns what the file system refuses into a sentence; absence is left to the caller."""
        try:
            yield
        except (*_ABSENT, FileExistsError):
            raise
        except OSError as error:
            raise _said(self.where(key), error) from error


def _said(where: str, error: OSError) -> UserError:
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return UserError(
                f"{where} is not permitted to this user: change the folder's permissions or take another"
            )
        case errno.ENOSPC | errno.EDQUOT:
            return UserError(f"{where} does not fit on its disk: free some space or take another folder")
        case errno.ENAMETOOLONG:
            return UserError(f"{where} is too long a path for this file system: take a shorter folder")
        case _:
            return StoreFailure(f"{where} could not be read or written: {error.strerror or error}")


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    etag = f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"
    return ObjectInfo(key, stat.st_size, etag, None)


def _write_temp(path: Path, data: bytes) -> Path:
    """A durable file with the content, beside the place it will have."""
    try:
        _make_folder(path.parent)
    except (*_ABSENT, FileExistsError) as error:
        raise UserError(f"{path.parent} cannot be made ({error.strerror}): take another folder") from error
    temp = path.with_name(f"{TEMP}{uuid.uuid4().hex}")
    with open(temp, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temp.unlink()
            raise
    return temp


def _link(temp: Path, path: Path) -> bool:
    """Gives the temp file its name; False if the name is taken."""
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # The weaker mode of file systems without hard links: whole content still, but two writers may both
        # succeed.
        with _locked(path.parent):
            if path.exists():
                return False
            os.replace(temp, path)
    return True


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:  # another writer made it, or it is a file
        if not folder.is_dir():
            raise
    _fsync(folder.parent)


def _fsync(folder: Path) -> None:
    """Makes a name in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """One process at a time among those that replace or delete here.

    The kernel frees it when the process dies.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
