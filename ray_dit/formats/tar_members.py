"""The entries of a tar in an object, one after another, without extracting any, and what they look like.

The tar may be hostile: time and memory are bounded by the bytes that are really there, names are text alone,
and links and devices lead nowhere.
"""

import itertools
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ray_dit.core.units import bytes_text
from ray_dit.errors import UserError, first_message
from ray_dit.formats.clutter import suffix_of, why_no_image
from ray_dit.formats.ranges import RangeFile
from ray_dit.formats.rows import Entry, Piece, Rows, Source

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Tars that can't be read in places; the first image is at the end of all before it."""
LARGEST_IMAGE = 512 << 20
"""Bytes of an encoded image, at most."""
LINKS, HUGE = "links and devices", "files of more than 512 MiB"
LOOK = 64
"""Entries of a tar that tell what it is."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar; ``start`` counts from the beginning of the object."""

    name: str
    start: int
    size: int
    special: bool = False
    """A link, a device, or a file with holes: not bytes in one place."""
    content: bytes = b""
    """Of files that were asked for."""


def tar_piece(
    source: Source, piece: Piece, contents: Mapping[str, int] = MappingProxyType({})
) -> Iterator[Member]:
    """The files in the tar that a piece is, without folders; UserError, naming it, for a damaged one.

    Files whose suffix or whole name is in ``contents`` come with their bytes, which are in what is read
    anyway; one of more bytes than it says is refused.
    """
    file = RangeFile(source, piece.object, piece.start, piece.length)
    where = f"{source.uri}/{piece.object}"
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:  # type: ignore[call-overload]
            at = -1
            while (entry := tar.next()) is not None:
                vars(tar)["members"] = []  # it would keep all, a KB each
                if tar.offset <= at or entry.size < 0:
                    raise ValueError("an entry that ends before it begins")
                at = tar.offset
                if not entry.isdir():
                    member = _member(entry, piece.start)
                    limit = contents.get(member.name, contents.get(split_sample(member.name)[1]))
                    limit = None if member.special else limit
                    if limit is not None:
                        member = replace(member, content=_content(file, entry, limit, where))
                    yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # which tarfile takes for the end
                raise ValueError(f"the header at {piece.start + tar.offset} is broken")
    except UserError:
        raise
    except Exception as error:  # tarfile raises much on damaged headers, and recurses where they ask for it
        raise UserError(
            f"{where} is no tar that can be read to its end ({first_message(error)}): make it again, and "
            "uncompressed"
        ) from error


def pass_over_tars(source: Source, pieces: Sequence[Piece]) -> str:
    """What it takes to pass over tars that are far away, in words; empty for those on a disk."""
    far = [piece for piece in pieces if source.local_path(piece.object) is None]
    if not far:
        return ""
    tars = "a tar" if len(far) == 1 else f"{len(far):,} tars"
    return (
        f"finding the images passes over {tars} once, as a tar has no index: reading up "
        f"to {bytes_text(sum(piece.length for piece in far))}"
    )


def _content(file: RangeFile, entry: tarfile.TarInfo, limit: int, where: str) -> bytes:
    if entry.size > limit:
        raise UserError(f"{entry.name} in {where} has {entry.size:,} bytes: it tells no class")
    file.seek(entry.offset_data)
    return file.read(entry.size)


def _member(entry: tarfile.TarInfo, start: int) -> Member:
    name = entry.name
    while name.startswith("./"):
        name = name[2:]
    return Member(name, start + entry.offset_data, entry.size, not entry.isreg() or entry.issparse())


def images_in(members: Iterable[Member], left_out: Counter[str]) -> Iterator[Member]:
    """Those that are images by name; the others are counted."""
    for member in members:
        reason = LINKS if member.special else why_no_image(member.name)
        if reason is None and member.size > LARGEST_IMAGE:
            reason = HUGE
        if reason is None:
            yield member
        else:
            left_out[reason] += 1


def rows_of(piece: Piece, found: Sequence[Member], left_out: Counter[str]) -> Rows:
    """The rows of the images found in the object of a piece."""
    columns = {
        "start": np.array([member.start for member in found], np.int64),
        "length": np.array([member.size for member in found], np.int64),
    }
    return Rows.in_object(piece, [member.name for member in found], columns, left_out=left_out)


def kind_of_tar(source: Source, first: Sequence[Entry]) -> str | None:
    """Name of the format that the first of these objects which is a tar is in; None where there is none."""
    tars = [entry for entry in first if suffix_of(entry.key) == ".tar"]
    if not tars:
        return None
    piece = Piece(tars[0].key, length=tars[0].size, size=tars[0].size)
    members = list(itertools.islice(tar_piece(source, piece), LOOK))
    if any(is_tar(member) for member in members):
        return "tars"
    samples: dict[str, set[str]] = {}
    for member in members:
        stem, suffix = split_sample(member.name)
        samples.setdefault(stem, set()).add(suffix)
    if any(_is_sample(suffixes) for suffixes in samples.values()):
        return "webdataset"
    images = [member for member in members if why_no_image(member.name) is None]
    flat = not any("/" in member.name for member in images)
    return "tars" if flat and len(tars) > 1 else "tar"


def split_sample(name: str) -> tuple[str, str]:
    """The sample a file of a WebDataset belongs to, and its suffix: all after the first dot of its name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def is_tar(member: Member) -> bool:
    """Whether an entry is a tar itself, by its name."""
    file = member.name.rpartition("/")[2]
    return not member.special and suffix_of(file) == ".tar" and not file.startswith(".")


def _is_sample(suffixes: set[str]) -> bool:
    has_image = any(suffix and why_no_image(f"x.{suffix}") is None for suffix in suffixes)
    return has_image and bool(suffixes & {"cls", "json"})
