"""A folder with one sub-folder per class: each image is an object, its key the path below the folder."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ray_dit.errors import NotFound, UserError
from ray_dit.formats.clutter import SUFFIXES, images_among, suffix_of, why_no_image
from ray_dit.formats.image_format import Entry, InputFormat, Listing, Piece, Place, Rows, Source, version_of
from ray_dit.formats.label_file import LabelFile
from ray_dit.formats.rows import texts_of


class ImageFolder(InputFormat):
    """Image files in folders named as their classes, or anywhere where a file gives their classes."""

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """Where one of the first names ends as an image's."""
        return any(suffix_of(entry.key) in SUFFIXES for entry in first if why_no_image(entry.key) is None)

    def pieces(self, source: Source) -> Sequence[Piece]:
        """The whole: a listing of a thousand objects takes one request."""
        path = _local_folder(source)
        if path is not None and not path.exists():
            raise NotFound(
                f"the image folder {source.uri} does not exist: give a folder with one sub-folder per class"
            )
        if path is not None and not path.is_dir():
            raise UserError(f"{source.uri} is a file where a folder with one sub-folder per class is wanted")
        return [Piece()]

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Lists the objects once; memory holds their names, sizes and versions alone."""
        left_out = Counter[str]()
        sizes, versions = array("q"), array("q")

        def names() -> Iterator[str]:
            for key, entry in images_among(((e.key, e) for e in source.list(piece.object)), left_out):
                sizes.append(entry.size)
                versions.append(version_of(source, entry))
                yield key

        return Rows(
            names=texts_of(names(), source.uri),
            sizes=np.array(sizes, np.int64),
            versions=np.array(versions, np.int64),
            left_out=left_out,
        )

    def list_images(
        self, source: Source, labels: LabelFile | None = None, rows: Iterable[Rows] | None = None
    ) -> Listing:
        """As every format; UserError for a class without images too."""
        listing = super().list_images(source, labels, rows)
        if labels is None:
            _refuse_empty_classes(source, listing.classes)
        return listing

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The file."""
        return source.get(str(place.get("object", key)))


def _refuse_empty_classes(source: Source, classes: Iterable[str]) -> None:
    """UserError for a class without images; only a local folder can hold an empty one."""
    path = _local_folder(source)
    folders = {entry.name for entry in path.iterdir() if entry.is_dir()} if path is not None else set[str]()
    with_images = {*classes}
    empty = sorted(
        name
        for name in folders
        if unicodedata.normalize("NFC", name) not in with_images and why_no_image(f"{name}/x.png") is None
    )
    if empty:
        raise UserError(
            f"the class folder {empty[0]!r} in {source.uri} holds no images: add some "
            f"({', '.join(SUFFIXES)}) or remove the folder"
        )


def _local_folder(source: Source) -> Path | None:
    inside = source.local_path("_")
    return inside.parent if inside is not None else None
