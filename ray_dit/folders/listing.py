"""The images of a source, listed piece by piece: here, or wherever a stage has its pieces listed.

What is found in an object is kept until the plan is stored, so that a planning that was killed goes on where
it was. Knows no Ray.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ray_dit.errors import Conflict, StoreFailure
from ray_dit.folders.sources import open_images
from ray_dit.formats.image_format import InputFormat, Piece, Rows, Source
from ray_dit.formats.kept_rows import read_rows, rows_bytes
from ray_dit.formats.registry import input_format
from ray_dit.ledger.restore import get_or_none, overwrite
from ray_dit.storage.store import Store, ahead

KEPT = "_runs/listing/"
"""Below it in the output, the rows of pieces lie while a job is planned."""
FEW = 8
"""Pieces up to which they are listed here, and not kept: more are worth the start of other processes."""
TRIES = 3
"""How often a piece is tried where storage fails, each time for as long as storage itself tries."""
VERSION = 1
"""Of the rows that are kept, and of how a format lists a piece."""

Numbered = tuple[int, Piece]
Listed = tuple[int, bytes]
Over = Callable[["ListPiece", Sequence[Numbered]], Iterator[Listed]]
"""Calls the first for each of the others, anywhere and in any order; raises the UserError of any."""


def in_threads(work: "ListPiece", items: Sequence[Numbered]) -> Iterator[Listed]:
    """All of them in this process."""
    return ahead(work, items)


@dataclass(frozen=True)
class ListedBy:
    """How the pieces of a source are listed."""

    over: Over = in_threads
    keep: Store | None = None
    """The output in which the rows of pieces are kept; None where nothing may be written."""


HERE = ListedBy()


@dataclass(frozen=True)
class ListPiece:
    """Lists pieces of a source, in whichever process it is called; picklable."""

    uri: str
    format: str
    keep: Store | None

    def __call__(self, item: Numbered) -> Listed:
        """The rows of a piece as bytes, with its number."""
        number, piece = item
        if self.keep is None or not piece.etag:  # of a prefix, only listing it would tell what is new
            return number, self._listed(piece)
        folder = self._folder(piece)
        kept = _whole(self.keep, folder)
        if kept is not None:
            return number, kept
        data = self._listed(piece)
        key = f"{folder}{hashlib.sha256(data).hexdigest()}.parquet"
        try:
            self.keep.put(key, data)
        except Conflict:  # what is there is damaged
            overwrite(self.keep, key, data)
        return number, data

    def _listed(self, piece: Piece) -> bytes:
        for _ in range(TRIES - 1):
            with suppress(StoreFailure):
                return self._once(piece)
        return self._once(piece)

    def _once(self, piece: Piece) -> bytes:
        return rows_bytes(input_format(self.format).list_piece(open_images(self.uri), piece), self.uri)

    def _folder(self, piece: Piece) -> str:
        """Below what the rows of a piece are kept."""
        identity = [VERSION, self.uri, self.format, *vars(piece).values()]
        return f"{KEPT}{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}/"


def rows_of(
    found: InputFormat,
    source: Source,
    task: ListPiece,
    over: Over,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Rows]:
    """The rows of all pieces of a source, in their order.

    ``tell`` is told first what is read for it, where that is much.
    """
    pieces = found.pieces(source)
    if much := found.pass_over(source, pieces):
        tell(much)
    if len(pieces) <= FEW:
        yield from (found.list_piece(source, piece) for piece in pieces)
        return
    waiting, at = dict[int, bytes](), 0
    for number, data in over(task, list(enumerate(pieces))):
        waiting[number] = data
        while at in waiting:
            yield read_rows(waiting.pop(at), f"what was listed of {pieces[at].object} in {source.uri}")
            at += 1


def forget_rows(store: Store) -> None:
    """Removes what was kept for a plan that is stored by now."""
    for info in list(store.list(KEPT)):
        store.delete(info.key)


def _whole(store: Store, folder: str) -> bytes | None:
    """Rows that were kept below a folder, of the hash that they are called by; None where there are none."""
    for info in store.list(folder):
        data = get_or_none(store, info.key)  # None where another driver has stored its plan just now
        if data is not None and info.key == f"{folder}{hashlib.sha256(data).hexdigest()}.parquet":
            return data
    return None
