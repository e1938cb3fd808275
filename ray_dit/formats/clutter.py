"""Which names are images, and why another is left out; nothing is read to tell.

Knows names alone: they may be paths in a folder, keys of objects, or entries of an archive, which may be
hostile.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".avif",
)  # fmt: skip
"""What names of images end in, in any case; what they hold is told by their bytes."""
HIDDEN = "hidden or set-aside names"
UNSAFE = "unsafe paths"
SYSTEM = "files of operating systems"
UNNAMED = "documents without a suffix"
_SYSTEM_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "@eadir", "lost+found"}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
_DOCUMENTS = {
    "readme", "license", "licence", "copying", "copyright", "notice", "authors", "changelog", "changes",
    "makefile", "dockerfile", "md5sums", "sha1sums", "sha256sums", "checksums", "checksum", "todo", "version",
}  # fmt: skip
"""Names without a suffix that no image has; others without one are taken for images."""
_LONGEST = 4096
_T = TypeVar("_T")


def why_no_image(name: str) -> str | None:
    """What a path is where it is no image's; None for an image's."""
    *folders, file = name.split("/")
    if (
        not file
        or len(name) > _LONGEST
        or any(part in ("", ".", "..") for part in (*folders, file))
        or "\0" in name
    ):
        return UNSAFE
    if any(part.casefold() in _SYSTEM_FOLDERS for part in folders) or file.casefold() in _SYSTEM_FILES:
        return SYSTEM
    if file.startswith(".") or is_set_aside(folders):
        return HIDDEN
    suffix = suffix_of(file)
    if suffix in SUFFIXES:
        return None
    if not suffix:
        return UNNAMED if file.casefold() in _DOCUMENTS else None
    return suffix if suffix[1:].isalnum() and len(suffix) <= 12 else "other names"


def is_set_aside(folders: Iterable[str]) -> bool:
    """Whether one of these folders is hidden, or put out of the way by an underscore."""
    return any(folder.startswith((".", "_")) for folder in folders)


def suffix_of(name: str) -> str:
    """The suffix of a file's name with its dot, in lower case; empty where there is none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def images_among(found: Iterable[tuple[str, _T]], left_out: Counter[str]) -> Iterator[tuple[str, _T]]:
    """Those pairs whose name is an image's; the others are counted."""
    for name, value in found:
        reason = why_no_image(name)
        if reason is None:
            yield name, value
        else:
            left_out[reason] += 1
