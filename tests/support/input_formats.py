"""An input format for tests of what is read by a plan that they make themselves."""

from collections.abc import Sequence

from ray_dit.formats.image_format import InputFormat
from ray_dit.formats.rows import Entry, Piece, Rows, Source


class ReadAlone(InputFormat):
    """Lists nothing; a test says how an image is read."""

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        return False

    def pieces(self, source: Source) -> Sequence[Piece]:
        raise NotImplementedError

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        raise NotImplementedError
