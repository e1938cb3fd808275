"""The benchmark of planning, small: its synthetic rows become a plan in parts."""

from benchmarks.planning import PIECES, plan_synthetic, rows
from ray_dit.folders.plan_parts import PART_ROWS


def test_synthetic_rows_are_planned() -> None:
    images = PART_ROWS // PIECES * PIECES + 5 * PIECES
    found = plan_synthetic(images)
    assert found["peak_mb"] >= found["before_mb"] > 0
    assert {"merge", "split and hash", "store", "seconds"} <= found.keys()


def test_synthetic_rows_are_in_no_order() -> None:
    pieces = [list(piece.names) for piece in rows(5 * PIECES)]
    assert len(pieces) == PIECES
    assert pieces != sorted(pieces)
    assert pieces[1] != sorted(pieces[1])
