"""What an image format is: images are listed and read one by one, or written in shards and read back.

Knows no concrete format (``registry.py`` does) and no store: objects come from a ``Source``. A format that is
only read is an ``InputFormat``, one that datasets are made in an ``OutputFormat``; one that is both derives
from both.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_dit.core.media import SUFFIX_OF, Encoding
from ray_dit.errors import UserError
from ray_dit.formats.clutter import suffix_of, why_no_image
from ray_dit.formats.dataset_card import Card
from ray_dit.formats.label_file import LabelFile
from ray_dit.formats.merging import (
    Layout,
    first_folders,
    merge,
    natural_key,
    number_classes,
    refuse_several_splits,
)
from ray_dit.formats.rows import Column, Entry, Listing, Piece, Place, Rows, Source
from ray_dit.formats.texts import Texts

__all__ = [
    "Entry", "ImageShard", "InputFormat", "Listing", "OutputFormat", "Piece", "Place", "Rows", "Source",
    "WholeDataset", "Written", "dtype_name", "input_sha256", "natural_key", "number_classes", "object_pieces",
    "version_of",
]  # fmt: skip


@dataclass(frozen=True)
class ImageShard:
    """Some images of a dataset: encoded, with labels, numbers and the names of all classes."""

    images: Sequence[bytes]
    """Image files; none where only what stands beside the images is wanted."""
    labels: NDArray[np.int64]
    """Zeros where the images have no classes."""
    ids: NDArray[np.int64]
    """The images' numbers in the dataset."""
    classes: tuple[str, ...]
    """In label order, each another one; none where the images have no labels."""
    wordnet_ids: tuple[str, ...] = ()
    """Of the classes; none where they are not known."""
    settings: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    """What varies from image to image, by name: int64, float64 or text."""
    encoding: Encoding = "png"
    prefix: str = ""
    """What the names of files begin with that lie among those of other generations."""
    layout: int = 2
    """Of the format: 1 is what the first version wrote."""

    @property
    def names(self) -> list[str]:
        """File names of the images, in the order of their numbers."""
        return [f"{number:09d}{SUFFIX_OF[self.encoding]}" for number in self.ids]

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The settings as lists, which JSON and Arrow take."""
        return {name: column.tolist() for name, column in self.settings.items()}


@dataclass(frozen=True)
class Written:
    """A shard that lies in storage."""

    key: str
    """Of the object that stands for it."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class WholeDataset:
    """A dataset of which all shards are there, for what a format writes at its end."""

    num_images: int
    image_size: int
    shards: Callable[[], Iterable[Written]]
    """In their order."""
    rows: Callable[[], Iterable[ImageShard]]
    """Those of each shard, in their order, without the images."""
    get: Callable[[Written], bytes]
    """The object that stands for a shard, checked."""


class InputFormat(ABC):
    """A way images lie in storage that stages can read.

    A source is split into pieces, each of which can be listed by itself, anywhere; ``merge`` makes their rows
    one listing.
    """

    layout = Layout()

    @abstractmethod
    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """Whether a source is in this format, by its first objects."""

    @abstractmethod
    def pieces(self, source: Source) -> Sequence[Piece]:
        """Splits a source, cheaply; UserError or NotFound where it holds none, saying what is wanted."""

    @abstractmethod
    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Finds the images of a piece without reading them; what is none is counted."""

    @abstractmethod
    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """One listed image, encoded as it lies there, by one request.

        UnreadableImage where it can't be unpacked.
        """

    def pass_over(self, source: Source, pieces: Sequence[Piece]) -> str:
        """What listing these pieces will read from far away, in words; empty where that is little."""
        return ""

    def list_images(
        self, source: Source, labels: LabelFile | None = None, rows: Iterable[Rows] | None = None
    ) -> Listing:
        """Finds all images; ``labels`` give their classes where the layout does not.

        ``rows`` are those of all pieces in their order, where they are listed elsewhere. UserError or
        NotFound where there are none, saying what is wanted.
        """
        if rows is None:
            rows = (self.list_piece(source, piece) for piece in self.pieces(source))
        return merge(source.uri, rows, self.layout, labels)


class OutputFormat(ABC):
    """A way datasets are written; the bytes are a function of the shard alone."""

    suffix: str
    """What the key of a shard's first object ends in; no other format's may."""
    encodings: tuple[Encoding, ...] = ("png", "jpeg", "webp")
    """How its images may be stored; the first is the usual one."""

    @abstractmethod
    def write(self, shard: ImageShard, name: str) -> dict[str, bytes]:
        """The objects of one shard by key.

        The first stands for the shard: its key is ``name`` and the suffix, and of all others it tells key and
        sha256, in a JSON object's list ``files``.
        """

    @abstractmethod
    def read(self, source: Source, keys: Sequence[str]) -> ImageShard:
        """The shard whose first object is the first of ``keys``: what ``write`` was given."""

    def whole(self, dataset: WholeDataset) -> Mapping[str, Callable[[], bytes]]:
        """What is written once all shards are there, by key: an index, say."""
        return {}

    @abstractmethod
    def card(self, shard: ImageShard) -> Card:
        """What the dataset's card says of shards like this one, whose images are not looked at."""


def dtype_name(column: NDArray[Any]) -> str:
    """The type of a setting's column as Arrow and `datasets` name it."""
    return {"i": "int64", "f": "float64"}.get(column.dtype.kind, "string")


def version_of(source: Source, entry: Entry) -> int:
    """An object's version as a number of 64 bits; 0 on a disk, where a copy has another ETag."""
    if entry.etag is None or source.local_path(entry.key) is not None:
        return 0
    return int.from_bytes(hashlib.sha256(entry.etag.encode()).digest()[:8], "big", signed=True)


_ROWS = 1 << 16
"""Rows that are hashed at once, which bounds the memory."""


def object_pieces(source: Source, suffix: str) -> list[Piece]:
    """A piece per object of a suffix; UserError for none, and for objects of several splits."""
    entries = [
        entry
        for entry in source.list()
        if suffix_of(entry.key) == suffix and why_no_image(entry.key) == suffix
    ]
    if not entries:
        raise UserError(
            f"{source.uri} holds no objects that end in {suffix}: give another --images.format or URI"
        )
    refuse_several_splits(source.uri, [entry.key for entry in entries])
    return [
        Piece(
            entry.key,
            length=entry.size,
            size=entry.size,
            version=version_of(source, entry),
            etag=entry.etag,
        )
        for entry in entries
    ]


def input_sha256(listing: Listing) -> str:
    """Stands for the input in fingerprints: the same for every copy of the same images.

    A hash of keys, sizes and places, not of the images, whose bytes are not read to make a plan; and of the
    classes, where they are not the first folders of the keys in natural order.
    """
    digest = hashlib.sha256(b"[")
    columns = (listing.keys, listing.sizes, *listing.places.values())
    _update_by_rows(digest.update, columns)
    digest.update(b"]")
    if not first_folders(listing.keys).are_numbered(listing.classes, listing.labels):
        digest.update(f"[{json.dumps(listing.classes)}, [".encode())
        _update_by_rows(digest.update, (listing.labels,))
        digest.update(b"]]")
    return digest.hexdigest()


def _update_by_rows(update: Callable[[bytes], None], columns: Sequence[Column]) -> None:
    """Writes rows as JSON does lists, with commas between; those of one column are bare values.

    Column by column, which takes a quarter of the time.
    """
    for start in range(0, len(columns[0]), _ROWS):
        parts = [_as_json(column[start : start + _ROWS]) for column in columns]
        lists = (f"[{row}]" for row in map(", ".join, zip(*parts, strict=True)))
        rows = parts[0] if len(parts) == 1 else lists
        update((b", " if start else b"") + ", ".join(rows).encode())


def _as_json(column: Column) -> list[str]:
    """Each value as JSON."""
    if isinstance(column, Texts):
        return list(map(encode_basestring_ascii, column.tolist()))
    if column.dtype.kind in "iu":
        return json.dumps(column.tolist())[1:-1].split(", ")
    return list(map(json.dumps, column.tolist()))
