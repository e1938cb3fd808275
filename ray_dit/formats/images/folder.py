"""A folder with one sub-folder per class: each image is an object, its key the path below the folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_dit.errors import NotFound, UserError
from ray_dit.formats.image_format import InputFormat, Listing, Place, Source, number_classes, version_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageFolder(InputFormat):
    """Image files in folders named as their classes.

    Other files, and files beside the folders, are left alone.
    """

    def list_images(self, source: Source) -> Listing:
        """Lists the folder once; UserError for a missing or empty folder and for a class without images."""
        found = sorted(
            (entry.key, entry.size, version_of(source, entry))
            for entry in source.list()
            if entry.key.lower().endswith(SUFFIXES) and "/" in entry.key
        )
        if not found:
            raise _nothing_found(source)
        keys = tuple(key for key, _, _ in found)
        names = [key.split("/", 1)[0] for key in keys]
        _refuse_empty_classes(source, names)
        _refuse_unreadable_names(source, keys)
        classes, labels = number_classes(names)
        return Listing(
            keys=keys,
            labels=labels,
            classes=classes,
            sizes=np.array([size for _, size, _ in found], np.int64),
            versions=np.array([version for _, _, version in found], np.int64),
        )

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The file."""
        return source.get(key)


def _refuse_empty_classes(source: Source, names: Sequence[str]) -> None:
    """UserError for a class without images; only a local folder can hold an empty one."""
    path = _local_folder(source)
    folders = {entry.name for entry in path.iterdir() if entry.is_dir()} if path is not None else set[str]()
    empty = sorted(name for name in folders - set(names) if not name.startswith((".", "_")))
    if empty:
        raise UserError(
            f"the class folder {empty[0]!r} in {source.uri} holds no images: add some "
            f"({', '.join(SUFFIXES)}) or remove the folder"
        )


def _refuse_unreadable_names(source: Source, keys: Sequence[str]) -> None:
    """UserError for a name that is no text, as a file system may hold it: no format could write it down."""
    for key in keys:
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"the name of {key!r} in {source.uri} is no UTF-8: rename it") from error


def _local_folder(source: Source) -> Path | None:
    inside = source.local_path("_")
    return inside.parent if inside is not None else None


def _nothing_found(source: Source) -> UserError:
    path = _local_folder(source)
    if path is not None and not path.exists():
        return NotFound(
            f"the image folder {source.uri} does not exist: give a folder with one sub-folder per class"
        )
    if path is not None and not path.is_dir():
        return UserError(f"{source.uri} is a file where a folder with one sub-folder per class is wanted")
    return UserError(
        f"no images found in {source.uri}: give a folder with one sub-folder per class, holding files that "
        "end in " + ", ".join(SUFFIXES)
    )
