"""WebDataset: tars in which files of one stem are a sample, an image and its class in ``.cls`` or ``.json``.

A place is (object, start, length), as in a plain tar. Knows no other layout.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from ray_dit.errors import UserError
from ray_dit.formats.image_format import Entry, InputFormat, object_pieces
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.label_file import class_in, class_name
from ray_dit.formats.merging import Layout
from ray_dit.formats.ranges import read_place
from ray_dit.formats.rows import Piece, Place, Rows, Source
from ray_dit.formats.tar_members import (
    Member,
    images_in,
    kind_of_tar,
    pass_over_tars,
    rows_of,
    split_sample,
    tar_piece,
)

LONGEST_LABEL = {"cls": 4 << 10, "json": 4 << 20}
"""Bytes of the files that tell a class, by suffix."""
OTHER = "other images of a sample"


class WebDataset(InputFormat):
    """Shards of samples; several are read as one."""

    layout = Layout(in_archive=True, names_repeat=True)

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """Looks at the first entries of the first tar."""
        return kind_of_tar(source, first) == "webdataset"

    def pieces(self, source: Source) -> Sequence[Piece]:
        """One per shard."""
        return object_pieces(source, ".tar")

    def pass_over(self, source: Source, pieces: Sequence[Piece]) -> str:
        """All of what lies far away is read."""
        return pass_over_tars(source, pieces)

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Passes over the headers of a shard, and reads what tells classes."""
        left_out = Counter[str]()
        where = f"{source.uri}/{piece.object}"
        classes: dict[str, str] = {}
        others: list[Member] = []
        for member in tar_piece(source, piece, LONGEST_LABEL):
            stem, suffix = split_sample(member.name)
            if suffix not in LONGEST_LABEL or member.special:
                others.append(member)
            elif suffix == "cls" or stem not in classes:  # what .cls says counts before what .json says
                classes[stem] = _class(member, suffix, where) or classes.get(stem, "")
        images = [m for m in images_in(others, left_out) if _is_whole_image(m, left_out)]
        rows = rows_of(piece, images, left_out)
        return replace(rows, classes=[classes.get(split_sample(member.name)[0], "") for member in images])

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The entry's bytes."""
        return read_place(source, place)


def _is_whole_image(member: Member, left_out: Counter[str]) -> bool:
    """Whether a sample's file is its image and not another one beside it, such as ``x.mask.png``."""
    if "." not in split_sample(member.name)[1]:
        return True
    left_out[OTHER] += 1
    return False


def _class(member: Member, suffix: str, where: str) -> str | None:
    """The class that a file of a sample tells; None where a JSON tells none."""
    try:
        if suffix == "cls":
            return class_name(member.content.decode())
        document = parse_json(member.content)
        if isinstance(document, dict):
            return class_in(cast("dict[str, Any]", document))
        return class_name(document)
    except ValueError as error:
        raise UserError(f"{member.name} in {where} tells no class: {error}") from error
