"""Objects as files on the local disk, for libraries that read paths; knows nothing of what they hold."""

import hashlib
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from ray_dit.errors import Damaged
from ray_dit.storage.s3 import READS
from ray_dit.storage.store import CHUNK, Store


@contextmanager
def local_file(store: Store, key: str) -> Generator[Path]:
    """The object as a file while the context lasts: its own, or a copy; NotFound.

    Nothing may be written to it.
    """
    with local_folder(store, [key]) as folder:
        yield folder / key


@contextmanager
def local_folder(store: Store, keys: Iterable[str]) -> Generator[Path]:
    """A folder in which these objects lie under their keys while the context lasts.

    NotFound if one is absent.

    It is the store's own where that has files, which may hold more. Copies are streamed, since by way of
    memory an object would take its size there.
    """
    own = store.local_path("_")
    if own is not None:
        for key in keys:
            store.open_file(key).close()
        yield own.parent
        return
    with tempfile.TemporaryDirectory() as scratch:
        for key in keys:
            path = Path(scratch) / key
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(store, key, path)
        yield Path(scratch)


def _copy(store: Store, key: str, path: Path) -> None:
    """Copies an object, again where a bit flipped on the way; Damaged if it is not what was stored."""
    for _ in range(READS):
        with store.open_file(key) as source, open(path, "wb") as copy:
            shutil.copyfileobj(source, copy, CHUNK)
        info = store.head(key)
        if info is None or info.sha256 is None:
            return
        with open(path, "rb") as copy:
            if hashlib.file_digest(copy, "sha256").hexdigest() == info.sha256:
                return
    raise Damaged(f"{store.where(key)} is damaged: its bytes are not those its writer stored; repair it")
