"""Rows of pieces as bytes: all of them come back, and no changed bit is taken for one of them."""

from collections import Counter

import numpy as np
import pytest

from ray_dit.errors import UserError
from ray_dit.formats.image_format import Piece, Rows
from ray_dit.formats.kept_rows import read_rows, rows_bytes
from ray_dit.formats.registry import input_format
from tests.support.layouts import LAYOUTS
from tests.support.memory import Memory

FILES = {f"{name}/{number}.png": bytes(number) for name in ("cat", "dög") for number in range(3)}


def content(rows: Rows) -> tuple[object, ...]:
    return (
        list(rows.names),
        rows.sizes.tolist(),
        rows.versions.tolist(),
        {name: column.tolist() for name, column in rows.places.items()},
        None if rows.classes is None else list(rows.classes),
        rows.declared,
        None if rows.labels is None else rows.labels.tolist(),
        rows.keyed,
        rows.left_out,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_every_format_come_back(layout: str) -> None:
    source, found = Memory(LAYOUTS[layout](FILES)), input_format(layout)
    for piece in found.pieces(source):
        rows = found.list_piece(source, piece)
        again = read_rows(rows_bytes(rows, "x"), "x")
        assert content(again) == content(rows)
        assert len(rows.names)


def test_a_piece_without_images_comes_back() -> None:
    rows = Rows.in_object(Piece("a.tar"), [], {"start": np.zeros(0, np.int64)}, left_out=Counter(x=2))
    again = read_rows(rows_bytes(rows, "x"), "x")
    assert (len(again.names), again.left_out) == (0, Counter(x=2))
    assert {name: column.tolist() for name, column in again.places.items()} == {"object": [], "start": []}


def test_names_that_are_no_text_are_refused() -> None:
    zeros = np.zeros(1, np.int64)
    with pytest.raises(UserError, match=r"the name of 'a/\\udcff.png' in here is no UTF-8: rename it"):
        rows_bytes(Rows(["a/\udcff.png"], zeros, zeros), "here")
