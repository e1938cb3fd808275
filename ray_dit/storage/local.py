"""A folder of files as a store: temp file, fsync, link; knows nothing of networks.

A key becomes visible by ``link(2)``, which fails if the name is taken, so it is put-if-absent with whole
content. What a killed writer leaves is a temp file, which no listing shows and ``clean`` removes.

Objects are regular files. A FIFO, socket or device, which might be waited for without end when it is opened,
is none: it is not listed and never opened.
"""

import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ray_dit.errors import Conflict, NotFound, StoreFailure, UserError
from ray_dit.storage.store import FileBytes, ObjectInfo, Store, checked_key, chunks_of

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

    def get_version(self, key: str, span: tuple[int, int] | None = None) -> tuple[bytes, ObjectInfo]:
        with self.open_file(key) as file:
            info = _info(key, os.fstat(file.fileno()))
            start, length = span or (0, -1)
            file.seek(start)
            return file.read(length), info

    def open_file(self, key: str) -> BinaryIO:
        path = self._path(key)
        try:
            with self._saying(key):
                if _is_special(os.stat(path)):
                    raise UserError(
                        f"{path} is a FIFO, socket or device, not a file: remove it or take another"
                    )
                return open(path, "rb")
        except _ABSENT as error:
            raise NotFound(f"{self.where(key)} does not exist") from error

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._saying(key):
                found = os.stat(self._path(key))
                return _info(key, found) if stat.S_ISREG(found.st_mode) else None
        except _ABSENT:
            return None

    def put(self, key: str, data: bytes) -> bool:
        return self._put(key, data)

    def _put_large(self, key: str, data: FileBytes) -> bool:
        return self._put(key, data)

    def _put(self, key: str, data: bytes | FileBytes) -> bool:
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
        return self._walk(Path(self.uri) / folder, f"{folder}/" if folder else "", name, ())

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

    def _walk(
        self, folder: Path, prefix: str, start: str, above: tuple[os.stat_result, ...]
    ) -> Iterator[ObjectInfo]:
        """A folder's objects in the order of whole keys: a sub-folder sorts as its name and a slash.

        UserError for a symbolic link to one of the folders ``above``, in which the walk would never end.
        """
        try:
            with self._saying(prefix), os.scandir(folder) as entries:
                here = os.stat(folder)
                if any(os.path.samestat(here, other) for other in above):
                    raise UserError(
                        f"{folder} is a symbolic link to a folder it lies in: remove the link, as what is "
                        "below it has no end"
                    )
                names = sorted(
                    entry.name + "/" * _is_folder(entry)
                    for entry in entries
                    if entry.name.startswith(start) and not entry.name.startswith(TEMP)
                )
        except _ABSENT:
            return
        for name in names:
            if name.endswith("/"):
                yield from self._walk(folder / name, prefix + name, "", (*above, here))
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
        case errno.ELOOP:
            return UserError(f"{where} leads through symbolic links that end nowhere: remove or repair them")
        case errno.ENAMETOOLONG:
            return UserError(f"{where} is too long a path for this file system: take a shorter folder")
        case _:
            return StoreFailure(f"{where} could not be read or written: {error.strerror or error}")


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return ObjectInfo(key, found.st_size, etag, None)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link that leads to itself: whoever looks at the object says so
        return False


def _is_special(found: os.stat_result) -> bool:
    """Whether it is neither a file nor a folder."""
    return not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode)


def _write_temp(path: Path, data: bytes | FileBytes) -> Path:
    """A durable file with the content, beside the place it will have."""
    try:
        _make_folder(path.parent)
    except (*_ABSENT, FileExistsError) as error:
        for link in (path.parent, *path.parent.parents):
            if link.is_symlink() and not link.exists():
                raise UserError(
                    f"{path.parent} cannot be made, as the symbolic link {link} ends nowhere: remove it or "
                    "take another folder"
                ) from error
        raise UserError(f"{path.parent} cannot be made ({error.strerror}): take another folder") from error
    temp = path.with_name(f"{TEMP}{uuid.uuid4().hex}")
    with open(temp, "xb") as file:
        try:
            for chunk in chunks_of(data):
                file.write(chunk)
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
