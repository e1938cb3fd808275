"""Objects as files on the local disk, for libraries that read paths; knows nothing of what they hold."""

import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

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
            with store.open_file(key) as source, open(path, "wb") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
        yield Path(scratch)
