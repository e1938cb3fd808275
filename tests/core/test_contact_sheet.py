"""A contact sheet: a row per name, with its images beside it."""

import io

import numpy as np
import PIL.Image
import pytest

from ray_dit.core.contact_sheet import INK, PAPER, contact_sheet


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def images(count: int, value: int, side: int = 32) -> np.ndarray:
    """Red ones: letters are grey."""
    return np.broadcast_to(np.array([value, 0, 0], np.uint8), (count, side, side, 3))


def shown(sheet: np.ndarray, value: int) -> np.ndarray:
    return (sheet == (value, 0, 0)).all(-1)


def test_each_row_has_its_images_right_of_its_name() -> None:
    sheet = pixels(contact_sheet({"cat": images(3, 90), "dog": images(1, 180)}, smallest_side=32))
    cats, dogs = np.argwhere(shown(sheet, 90)), np.argwhere(shown(sheet, 180))
    left = cats[:, 1].min()
    top, bottom = sheet[: cats[:, 0].max(), :left], sheet[dogs[:, 0].min() :, :left]
    for name in (top, bottom):  # what the font draws, on paper
        assert (name == INK).all(-1).any()
        assert (name == PAPER).all(-1).mean() > 0.5
    assert (len(cats), len(dogs)) == (3 * 32 * 32, 32 * 32)
    assert dogs[:, 1].min() == left, "images begin below one another"
    assert dogs[:, 0].min() > cats[:, 0].max()
    assert not np.array_equal(top[:32], bottom[:32]), "the names differ"


def test_small_images_are_enlarged_and_long_names_cut() -> None:
    sheet = pixels(contact_sheet({"long " * 100 + "\n": images(1, 90, side=8)}, smallest_side=64))
    assert np.count_nonzero(shown(sheet, 90)) == 64 * 64
    assert sheet.shape[1] < 500


def test_names_of_every_script_are_drawn_and_no_images_refused() -> None:
    assert contact_sheet({"服 ä🙂": images(1, 90), "empty": images(0, 0)}) != contact_sheet(
        {"a": images(1, 90)}
    )
    with pytest.raises(ValueError, match="without images"):
        contact_sheet({"empty": images(0, 0)})
