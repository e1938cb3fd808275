"""ZIP archives with a folder per class, read in place, stored or deflated.

A place is (object, start, length, packed): the range from an entry's local header on, which one request
reads, and how many bytes of the entry are in it. Knows no other layout.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ray_dit.formats.clutter import suffix_of, why_no_image
from ray_dit.formats.image_format import Entry, InputFormat, object_pieces
from ray_dit.formats.merging import Layout
from ray_dit.formats.ranges import read_place
from ray_dit.formats.rows import Piece, Place, Rows, Source
from ray_dit.formats.tar_members import HUGE, LARGEST_IMAGE
from ray_dit.formats.zip_members import DEFLATED, LOCAL, STORED, Member, unpacked, zip_piece

OTHERWISE = "files compressed otherwise than by deflate"
SPECIAL = "links and encrypted files"
LONGEST_HEADER = LOCAL.size + 2 * 0xFFFF


class Zip(InputFormat):
    """ZIP archives; several are read as one."""

    layout = Layout(in_archive=True)

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """By the names of the objects."""
        return any(suffix_of(entry.key) == ".zip" for entry in first)

    def pieces(self, source: Source) -> Sequence[Piece]:
        """One per archive."""
        return object_pieces(source, ".zip")

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Reads the directory of an archive."""
        left_out = Counter[str]()
        names: list[str] = []
        places: list[tuple[int, int]] = []
        starts: list[int] = []
        members, directory = zip_piece(source, piece)
        for member in members:
            starts.append(member.start)
            reason = _why_not(member)
            if reason is None:
                names.append(member.name)
                places.append((member.start, member.packed))
            else:
                left_out[reason] += 1
        start, packed = (np.array([place[column] for place in places], np.int64) for column in (0, 1))
        length = np.minimum(_gaps(start, starts, directory), LONGEST_HEADER + packed)
        columns = {"start": start, "length": length, "packed": packed}
        return Rows.in_object(piece, names, columns, left_out=left_out)

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The entry, unpacked."""
        return unpacked(read_place(source, place), int(place["packed"]))


def _gaps(start: np.ndarray, starts: Sequence[int], directory: int) -> np.ndarray:
    """Bytes from each start to the next entry's, or to the directory.

    How long a local header is stands only in itself, so that an entry ends where the next begins.
    """
    borders = np.unique(np.array([*starts, directory], np.int64))
    return borders[np.minimum(np.searchsorted(borders, start, side="right"), len(borders) - 1)] - start


def _why_not(member: Member) -> str | None:
    reason = why_no_image(member.name)
    if reason is None and member.special:
        return SPECIAL
    if reason is None and member.method not in (STORED, DEFLATED):
        return OTHERWISE
    if reason is None and max(member.packed, member.size) > LARGEST_IMAGE:
        return HUGE
    return reason
