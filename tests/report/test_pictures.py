"""Grids hold the right pixels at the right places."""

import io

import numpy as np
import PIL.Image
import pytest

from ray_dit.report.pictures import PAD, enlarge, grid, psnr


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def images(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_grid_lays_pictures_out_row_by_row_and_leaves_the_rest_transparent():
    five = images(5, 64, 70)
    canvas = pixels(grid(five, columns=3))
    assert canvas.shape == (2 * 64 + PAD, 3 * 70 + 2 * PAD, 4)
    np.testing.assert_array_equal(canvas[:64, 70 + PAD : 140 + PAD, :3], five[1])
    np.testing.assert_array_equal(canvas[64 + PAD :, :70, :3], five[3])
    assert canvas[:64, :70, 3].min() == 255
    assert canvas[:, 70 : 70 + PAD, 3].max() == 0
    assert canvas[64 + PAD :, 140 + 2 * PAD :, 3].max() == 0


def test_small_pictures_are_enlarged_without_smoothing():
    small = images(1, 30, 40)
    large = enlarge(small, 64)
    assert large.shape == (1, 90, 120, 3)
    np.testing.assert_array_equal(large[:, ::3, ::3], small)
    np.testing.assert_array_equal(large[:, 2::3, 2::3], small)
    assert pixels(grid(small, columns=1)).shape == (90, 120, 4)


def test_large_pictures_keep_their_size():
    assert pixels(grid(images(2, 64, 256), columns=2)).shape == (64, 512 + PAD, 4)


def test_the_same_pictures_give_the_same_bytes():
    assert grid(images(4, 32, 32), 2) == grid(images(4, 32, 32), 2)


def test_an_empty_grid_is_a_transparent_row():
    assert pixels(grid(images(0, 32, 32), columns=2))[..., 3].max() == 0


@pytest.mark.parametrize("wrong", [images(1, 8, 8)[0], images(1, 8, 8) / 255])
def test_grid_refuses_other_arrays(wrong: np.ndarray):
    with pytest.raises(ValueError, match=r"uint8 \[N, H, W, 3\]"):
        grid(wrong, 1)


def test_grid_refuses_no_columns():
    with pytest.raises(ValueError, match="at least one column"):
        grid(images(1, 8, 8), 0)


def test_psnr_of_a_uniform_error():
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    b = np.stack([a[0], a[1] + 10])
    assert psnr(a, b).tolist() == [np.inf, pytest.approx(20 * np.log10(25.5))]
