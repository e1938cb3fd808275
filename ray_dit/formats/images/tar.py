"""Tars of images, read in place: folders inside are classes, or each tar is one.

A place is (object, start, length): an image takes one request of a range. Knows no other layout.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ray_dit.formats.clutter import why_no_image
from ray_dit.formats.image_format import Entry, InputFormat, object_pieces
from ray_dit.formats.merging import Layout
from ray_dit.formats.ranges import read_place
from ray_dit.formats.rows import Piece, Place, Rows, Source
from ray_dit.formats.tar_members import (
    Member,
    images_in,
    is_tar,
    kind_of_tar,
    pass_over_tars,
    rows_of,
    tar_piece,
)


class Tar(InputFormat):
    """Tars with a folder per class; several are read as one."""

    suffix = ".tar"
    kind = "tar"
    layout = Layout(in_archive=True)

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """Looks at the first entries of the first tar."""
        return kind_of_tar(source, first) == self.kind

    def pieces(self, source: Source) -> Sequence[Piece]:
        """One per tar."""
        return object_pieces(source, self.suffix)

    def pass_over(self, source: Source, pieces: Sequence[Piece]) -> str:
        """All of what lies far away is read."""
        return pass_over_tars(source, pieces)

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Passes over the headers of a tar."""
        left_out = Counter[str]()
        found = list(images_in(tar_piece(source, piece), left_out))
        return rows_of(piece, found, left_out)

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The entry's bytes."""
        return read_place(source, place)


class TarOfTars(Tar):
    """A tar whose entries are tars, or a folder of tars: each inner tar is a class, named as it is.

    ILSVRC2012's training images are distributed so.
    """

    kind = "tars"

    def pieces(self, source: Source) -> Sequence[Piece]:
        """One per inner tar."""
        found: list[Piece] = []
        for outer in object_pieces(source, self.suffix):
            found += _inner_tars(source, outer) or [replace(outer, label=_stem(outer.object))]
        return found

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Passes over the headers of an inner tar."""
        rows = super().list_piece(source, piece)
        return replace(rows, classes=[piece.label or ""] * len(rows.names))


def _inner_tars(source: Source, outer: Piece) -> list[Piece]:
    """The tars in a tar; none where an image comes first: then its images are one class."""
    found: list[Piece] = []
    for member in tar_piece(source, outer):
        if is_tar(member):
            found.append(_inner(outer, member))
        elif not found and why_no_image(member.name) is None:
            return []
    return found


def _inner(outer: Piece, member: Member) -> Piece:
    return replace(outer, start=member.start, length=member.size, label=_stem(member.name))


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
