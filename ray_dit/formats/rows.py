"""What listing images goes through: a source's pieces, the rows of each, the listing of all.

Types alone; knows no format and no store.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_dit.errors import UserError
from ray_dit.formats.texts import Texts

Place = Mapping[str, Any]
"""Where one image lies in its object, as its format wrote it down in ``Listing.places``; empty where it is
the object."""
Column = NDArray[Any] | Texts
"""A value per image."""
OBJECT = "object"
"""The column of places that names the object, where a key does not."""


class Entry(Protocol):
    """An object as a listing shows it."""

    @property
    def key(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str | None: ...


class Source(Protocol):
    """A folder of objects as the formats see it; every store is one. NotFound where an object is absent."""

    @property
    def uri(self) -> str: ...
    def list(self, prefix: str = "") -> Iterator[Entry]: ...
    def get(self, key: str) -> bytes: ...
    def get_range(self, key: str, start: int, length: int) -> bytes: ...
    def open_file(self, key: str) -> BinaryIO: ...
    def local_path(self, key: str) -> Path | None: ...


@dataclass(frozen=True)
class Piece:
    """A part of a source that can be listed by itself, on any machine: an object, a part of one, a prefix."""

    object: str = ""
    """Key of the object, or the prefix of several."""
    start: int = 0
    length: int = 0
    """Which of its bytes, in an object."""
    size: int = 0
    """Bytes of the whole object."""
    version: int = 0
    """Of the object; see ``Listing.versions``."""
    etag: str | None = None
    """Of the object, as storage has it; changes with its content on a disk, too."""
    label: str | None = None
    """The class of all its images, where the piece tells it."""
    is_of_many: bool = False
    """The source holds more bytes than a process can keep, so that images have to be read in their order."""


@dataclass(frozen=True)
class Rows:
    """The images of a piece, in any order."""

    names: Sequence[str]
    """The path of each as the layout has it, below the source or the archive."""
    sizes: NDArray[np.int64]
    versions: NDArray[np.int64]
    """As in a listing."""
    places: Mapping[str, Column] = field(default_factory=dict[str, Column])
    classes: Sequence[str] | None = None
    """The class of each where the layout tells it, empty for one without; None where the first folder of its
    name tells it."""
    declared: tuple[str, ...] = ()
    """Names of classes that the layout itself numbers; then ``labels`` holds the numbers, -1 for none."""
    labels: NDArray[np.int64] | None = None
    keyed: bool = False
    """The names are the keys, with no class before them: they are numbers of rows."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """How many objects or entries were no images, by what they were."""

    @classmethod
    def in_object(
        cls, piece: Piece, names: list[str], columns: Mapping[str, NDArray[Any]], **fields: Any
    ) -> "Rows":
        """Images in the one object of a piece; ``columns`` say where in it."""
        return cls(
            names=names,
            sizes=np.broadcast_to(np.int64(piece.size), len(names)),  # of which memory holds one
            versions=np.broadcast_to(np.int64(piece.version), len(names)),
            places={OBJECT: Texts.same(piece.object, len(names)), **columns},
            **fields,
        )

    def packed(self, where: str) -> "Rows":
        """The same with its strings as ``Texts``; UserError for a name that is no text."""
        return replace(
            self,
            names=texts_of(self.names, where),
            places={name: packed(column) for name, column in self.places.items()},
            classes=None if self.classes is None else Texts.repeated(self.classes),
        )


@dataclass(frozen=True)
class Listing:
    """All images of a source in key order: row i is ``keys[i]``, of class ``classes[labels[i]]``."""

    keys: Texts
    """A name of each image, unique and stable: which ones are held out is a function of it."""
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    sizes: NDArray[np.int64]
    """Bytes of the object each image lies in."""
    versions: NDArray[np.int64]
    """Which version of that object it is, by its ETag (``version_of``); 0 where storage tells none that
    stands for the content."""
    places: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Columns of one value per image that say where it lies, such as object, start and length; none where the
    key is the object. A plan keeps them beside its own columns, ``key``, ``label`` and ``heldout``."""
    format: str = "folder"
    """Name of the format that listed them, in the registry."""
    left_out: Counter[str] = field(default_factory=Counter[str])
    """How many objects or entries were no images, by what they were."""

    @property
    def note(self) -> str:
        """One line on what was left out; empty where nothing was."""
        if not self.left_out:
            return ""
        kinds = ", ".join(f"{count:,} {what}" for what, count in self.left_out.most_common(6))
        more = "" if len(self.left_out) <= 6 else f" and {len(self.left_out) - 6} other kinds"
        return f"left out {self.left_out.total():,}: {kinds}{more}"


def texts_of(names: Iterable[str], where: str) -> Texts:
    """Names of images; UserError for one that is no text, as a file system may hold it."""
    try:
        return Texts.of(names)
    except UnicodeEncodeError as error:
        raise UserError(f"the name of {error.object!r} in {where} is no UTF-8: rename it") from error


def packed(column: Column) -> Column:
    """The column, as ``Texts`` where it holds strings."""
    is_text = isinstance(column, np.ndarray) and column.dtype.kind in "OU"
    return Texts.repeated(column.tolist()) if is_text else column


def concatenated(parts: Sequence[Column]) -> Column:
    """A column of several pieces, one after another."""
    columns = [packed(part) for part in parts]
    texts = [column for column in columns if isinstance(column, Texts)]
    if len(texts) == len(columns):
        return Texts.joined(texts)
    return np.concatenate([column for column in columns if not isinstance(column, Texts)])
