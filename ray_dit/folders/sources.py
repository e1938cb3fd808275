"""What ``--images.uri`` and ``--images.labels`` name, opened: a folder, one object, or those of a pattern.

Knows storage and no format.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ray_dit.errors import NotFound, UserError
from ray_dit.folders.around import Around
from ray_dit.formats.label_file import LabelFile, read_label_file
from ray_dit.storage.open import open_store
from ray_dit.storage.store import ObjectInfo, Store

ARCHIVES = (".tar", ".zip", ".parquet")
"""What a single object of images ends in; anything else is a folder."""
WILD = ("*", "?", "[")
_ARCHIVES_SEEN: set[str] = set()
"""URIs that named an object: whoever reads image by image asks storage once."""


@dataclass(frozen=True)
class Selected(Around):
    """The objects of a store whose keys fit a pattern; a ``Source``."""

    pattern: str
    exact: bool
    """The pattern is a key, whatever signs are in it."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects that fit."""
        if self.exact:
            info = self.store.head(self.pattern)
            return iter([info] if info is not None and info.key.startswith(prefix) else [])
        return (info for info in self.store.list(prefix) if self._fits(info.key))

    def _fits(self, key: str) -> bool:
        return "/" not in key and fnmatchcase(key, self.pattern)


def open_images(uri: str) -> Store | Selected:
    """The source of images at a URI: all of a folder, one archive, or the archives that fit a pattern."""
    folder, _, name = uri.rpartition("/")
    if not folder.strip("/") or folder.endswith(":/"):  # nothing above it, or a bucket alone
        return open_store(uri)
    is_archive = name.lower().endswith(ARCHIVES)
    if is_archive and (uri in _ARCHIVES_SEEN or open_store(folder).head(name) is not None):
        _ARCHIVES_SEEN.add(uri)
        return Selected(open_store(folder), name, exact=True)
    if is_archive and any(sign in name for sign in WILD):
        return Selected(open_store(folder), name, exact=False)
    return open_store(uri)


def store_of_images(uri: str) -> Store:
    """The store in which the objects of ``open_images`` have their keys."""
    source = open_images(uri)
    return source.store if isinstance(source, Selected) else source


def read_labels(uri: str | None) -> LabelFile | None:
    """The file of classes at a URI; UserError where it is none, NotFound where nothing is."""
    if uri is None:
        return None
    folder, _, name = uri.rpartition("/")
    try:
        return read_label_file(open_store(folder or "/").get(name), uri)
    except NotFound as error:
        raise NotFound(f"the file of labels {uri} does not exist: check --images.labels") from error
    except ValueError as error:
        raise UserError(f"{uri} names no file of labels: give one for --images.labels") from error
