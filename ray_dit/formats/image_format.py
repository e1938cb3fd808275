"""What an image format is: images are listed and read one by one, or written in shards and read back.

Knows no concrete format (``registry.py`` does) and no store: objects come from a ``Source``. A format that is
only read is an ``InputFormat``, one that datasets are made in an ``OutputFormat``; one that is both derives
from both.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

Place = Mapping[str, Any]
"""Where one image lies in its object, as its format wrote it down in ``Listing.places``; empty where it is
the object."""


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
class Listing:
    """All images of a source in key order: row i is ``keys[i]``, of class ``classes[labels[i]]``."""

    keys: tuple[str, ...]
    """A name of each image, unique and stable: which ones are held out is a function of it."""
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    sizes: NDArray[np.int64]
    """Bytes of the object each image lies in."""
    versions: NDArray[np.int64]
    """Which version of that object it is, by its ETag (``version_of``); 0 where storage tells none that
    stands for the content."""
    places: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    """Columns of one value per image that say where it lies, such as object, start and length; none where the
    key is the object. A plan keeps them beside its own columns, ``key``, ``label`` and ``heldout``."""


@dataclass(frozen=True)
class ImageShard:
    """Some images of a dataset: encoded, with labels, numbers and the names of all classes."""

    images: Sequence[bytes]
    """PNG files."""
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    """The images' numbers in the dataset."""
    classes: tuple[str, ...]
    """In label order; none where the images have no labels."""

    @property
    def names(self) -> list[str]:
        """File names of the images, in the order of their numbers."""
        return [f"{number:09d}.png" for number in self.ids]


class InputFormat(ABC):
    """A way images lie in storage that stages can read."""

    @abstractmethod
    def list_images(self, source: Source) -> Listing:
        """Finds all images without reading them.

        UserError or NotFound where there are none, saying what is wanted.
        """

    @abstractmethod
    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """One listed image, encoded as it lies there, by one request."""


class OutputFormat(ABC):
    """A way datasets are written; the bytes are a function of the shard alone."""

    suffix: str
    """What the keys of its objects end in; no other format's may."""

    @abstractmethod
    def write(self, shard: ImageShard, name: str) -> dict[str, bytes]:
        """The objects of one shard by key.

        ``name`` is the shard's key without suffix, for formats of one object each.
        """

    @abstractmethod
    def read(self, source: Source, keys: Sequence[str]) -> ImageShard:
        """The shard whose objects are ``keys``: what ``write`` was given."""


def version_of(source: Source, entry: Entry) -> int:
    """An object's version as a number of 64 bits; 0 on a disk, where a copy has another ETag."""
    if entry.etag is None or source.local_path(entry.key) is not None:
        return 0
    return int.from_bytes(hashlib.sha256(entry.etag.encode()).digest()[:8], "big", signed=True)


def input_sha256(listing: Listing) -> str:
    """Stands for the input in fingerprints: the same for every copy of the same images.

    A hash of keys, sizes and places, not of the images, whose bytes are not read to make a plan.
    """
    digest = hashlib.sha256(b"[")
    columns = [listing.keys, listing.sizes.tolist(), *(c.tolist() for c in listing.places.values())]
    for number, row in enumerate(zip(*columns, strict=True)):
        digest.update((b", " if number else b"") + json.dumps(row).encode())
    digest.update(b"]")
    return digest.hexdigest()


def number_classes(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The classes in natural order, and the number of each image's, from the name of each image's class."""
    classes = tuple(sorted(set(names), key=natural_key))
    number = {name: label for label, name in enumerate(classes)}
    return classes, np.array([number[name] for name in names], dtype=np.int64)


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts 2 before 10 and otherwise as text."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)
