"""A folder with one sub-folder per class: each image is an object, its key the path below the folder."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ray_dit.errors import NotFound, UserError
from ray_dit.formats.image_format import InputFormat, Listing, Place, Source, number_classes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageFolder(InputFormat):
    """Image files in folders named as their classes.

    Other files, and files beside the folders, are left alone.
    """

    def list_images(self, source: Source) -> Listing:
        """Lists the folder once; UserError for a missing or empty folder and for a class without images."""
        found = [(entry.key, entry.size) for entry in source.list() if entry.key.lower().endswith(SUFFIXES)]
        found = sorted((key, size) for key, size in found if "/" in key)
        if not found:
            raise _nothing_found(source)
        names = [key.split("/", 1)[0] for key, _ in found]
        _refuse_empty_classes(source, names)
        _refuse_unreadable_names(source, found)
        classes, labels = number_classes(names)
        return Listing(
            keys=tuple(key for key, _ in found),
            labels=labels,
            classes=classes,
            # Keys and sizes stand for the images, since their bytes are not read to make a plan.
            sha256=hashlib.sha256(json.dumps(found).encode()).hexdigest(),
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


def _refuse_unreadable_names(source: Source, found: Sequence[tuple[str, int]]) -> None:
    """UserError for a name that is no text, as a file system may hold it: no format could write it down."""
    for key, _ in found:
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
