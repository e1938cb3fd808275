"""Local copies of latent shards, made in threads while training goes on; knows nothing of rows.

A copy is written to a temp file and renamed, so it is whole or not there. Of all processes that use the same
folder one copies, by a lock that the kernel frees when it dies; the others see files appear. What storage
refuses is raised by ``check``. What the local disk refuses ends the copying and not the training.
"""

import fcntl
import logging
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ray_dit.core.units import bytes_text

TEMP = ".part-"
"""Files that are being written start with it."""
AT_ONCE = 4
"""Shards that are copied at once."""
LOOK_SECONDS = 1.0
"""Between two looks for what others have copied."""
FREE = 0.05
"""Of the disk, left free where no size is given."""
STALE_SECONDS = 600.0
"""Age at which a temp file is one that a killed process left: longer than any request is waited for."""
TRIES = 2
"""Copies of a shard that may turn out damaged before it is no longer copied."""
TOLD = 5
"""Damaged copies that are told of: all of them may be gone."""
_log = logging.getLogger(__name__)


Fetch = Callable[[int, BinaryIO, Callable[[], bool]], bool]
"""Writes the copy of a shard, given its number, to an empty file; False if it was told before that all is
over. UserError where storage does not give it."""


class LocalCopies:
    """The copies of ``sizes`` many bytes in a folder, each under its number.

    Copying begins with ``start`` and ends with ``close``.
    """

    def __init__(self, folder: Path, sizes: list[int], fetch: Fetch, *, most: int | None = None) -> None:
        """``most``: bytes of all copies; by default all the disk has, but for a twentieth of it."""
        self.folder, self._sizes, self._fetch, self._most = folder, sizes, fetch, most
        self._there: set[int] = set()
        self._damaged: Counter[int] = Counter()
        self._begun: set[int] = set()
        """What is being copied by this process."""
        self._mutex, self._one = threading.Lock(), threading.Lock()
        self._stop, self._wake = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._is_full = False
        self._look()

    @property
    def local(self) -> int:
        """How many shards have a copy."""
        return len(self._there)

    def start(self) -> None:
        """Begins to copy what is missing; OSError where the folder may not be written to."""
        if self._missing():
            with locked(self.folder / _LOCK, wait=False):
                pass
        threading.Thread(target=self._run, name=_THREAD, daemon=True).start()

    def close(self) -> None:
        """Ends the copying, with the request that is under way."""
        self._stop.set()
        self._wake.set()

    def check(self) -> None:
        """Raises what ended the copying, if storage did."""
        if self._error is not None:
            raise self._error

    def read(self, number: int, start: int, length: int) -> bytes | None:
        """A range of a copy, shorter where it is damaged; None where there is no copy."""
        if number not in self._there:
            return None
        try:
            with open(self._path(number), "rb", buffering=0) as file:
                return os.pread(file.fileno(), length, start)
        except OSError:
            return b""

    def drop(self, number: int) -> None:
        """Removes a damaged copy, so that it is made again."""
        with self._mutex:
            if number not in self._there:
                return
            self._there.discard(number)
            self._damaged[number] += 1
            count = self._damaged.total()
            with suppress(OSError):
                self._path(number).unlink(missing_ok=True)
        if count <= TOLD:
            more = ", and more will not be told" if count == TOLD else ""
            path = self._path(number)
            _log.warning("the local copy of latents %s is damaged or gone: it is made anew%s", path, more)
        self._wake.set()

    def copy(self, number: int) -> None:
        """Returns when a shard has a copy; OSError if it can't be written, UserError as ``Fetch``."""
        with self._one:
            if number not in self._there:
                self._copy(number)

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and self._error is None:
                self._wake.clear()
                self._look()
                missing = self._missing()
                if missing and not self._is_full:
                    with locked(self.folder / _LOCK, wait=False) as mine:
                        if mine:
                            self._look()  # another process may have copied some, and died
                            self._copy_all(self._missing())
                    missing = self._missing()
                self._wake.wait(LOOK_SECONDS if missing else None)
        except OSError as error:
            self._end(error)
        except BaseException as error:
            self._error = error

    def _copy_all(self, numbers: list[int]) -> None:
        """Copies these, some at once, until all are there, one fails or there is no more room."""
        remove_stale(self.folder)
        left = iter(numbers)
        threads = [
            threading.Thread(target=self._work, args=(left,), name=_THREAD, daemon=True)
            for _ in range(AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, left: Iterator[int]) -> None:
        try:
            while (number := self._next(left)) is not None:
                self._copy(number)
        except OSError as error:
            self._end(error)
        except BaseException as error:
            self._error = self._error or error

    def _next(self, left: Iterator[int]) -> int | None:
        """The next shard to copy; None where there is none, or no room."""
        with self._mutex:
            if self._stop.is_set() or self._is_full or self._error is not None:
                return None
            number = next(left, None)
            if number is None:
                return None
            if self._has_room(number):
                self._begun.add(number)
                return number
        self._end(None)
        return None

    def _has_room(self, number: int) -> bool:
        size = self._sizes[number] + sum(self._sizes[other] for other in self._begun)
        if self._most is not None:
            return size + sum(self._sizes[other] for other in self._there) <= self._most
        disk = shutil.disk_usage(self.folder)
        return size + FREE * disk.total <= disk.free

    def _end(self, error: OSError | None) -> None:
        """There is no room for more; said once, unless it was asked for."""
        with self._mutex:
            was_full, self._is_full = self._is_full, True
            have = sum(self._sizes[number] for number in self._there)
        if was_full or (error is None and self._most is not None):
            return
        _log.warning(
            "%s of the %s of latents are copied to %s, which takes no more (%s): the others are read from "
            "storage row by row; set RAY_DIT_CACHE to a local disk with more space",
            bytes_text(have), bytes_text(sum(self._sizes)), self.folder,
            "its disk is almost full" if error is None else error.strerror or error,
        )  # fmt: skip

    def _copy(self, number: int) -> None:
        try:
            with new_file(self._path(number)) as file:
                if not self._fetch(number, file, self._stop.is_set):
                    raise _Stopped
            with self._mutex:
                self._there.add(number)
        except _Stopped:
            return
        finally:
            with self._mutex:
                self._begun.discard(number)

    def _missing(self) -> list[int]:
        return [
            number
            for number in range(len(self._sizes))
            if number not in self._there and self._damaged[number] < TRIES
        ]

    def _look(self) -> None:
        """Finds the copies that there are; removes those of another size, which nobody can use."""
        with os.scandir(self.folder) as entries:
            names = {entry.name for entry in entries}
        for number in self._missing():
            path = self._path(number)
            if path.name in names:
                with suppress(OSError):
                    if path.stat().st_size != self._sizes[number]:
                        path.unlink(missing_ok=True)
                        continue
                    with self._mutex:
                        self._there.add(number)

    def _path(self, number: int) -> Path:
        return copy_path(self.folder, number)


_LOCK = "copying.lock"
_THREAD = "copy latents"


class _Stopped(Exception):
    """The copying was ended before a copy was whole."""


def copy_path(folder: Path, number: int) -> Path:
    """Where the copy of a shard lies."""
    return folder / f"{number:06d}"


@contextmanager
def new_file(path: Path) -> Generator[BinaryIO]:
    """A file to write, which is at ``path`` when the context ends well, and nowhere otherwise."""
    temp = path.with_name(f"{TEMP}{uuid.uuid4().hex}")
    try:
        with open(temp, "xb") as file:
            yield file
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Removes temp files of processes that were killed."""
    oldest = time.time() - STALE_SECONDS
    for path in folder.glob(f"{TEMP}*"):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


@contextmanager
def locked(path: Path, *, wait: bool) -> Generator[bool]:
    """Whether this process has the lock while the context lasts; the kernel frees it when the process dies.

    On a file system without locks everybody has it: what is done twice does no harm. OSError where the file
    can't be made.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(descriptor)
