"""Crops to the byte, images to PNG and back, grids with the right pixels at the right places, PSNR."""

import io

import numpy as np
import PIL.Image
import pytest

from ray_dit.core.media import PAD, UnreadableImage, center_crop, decode, enlarge, grid, png, psnr
from tests.support.golden_dit import CASES

CROPS = [name.removeprefix("crop_in_") for name in CASES if name.startswith("crop_in_")]


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


def test_psnr_of_equal_images_is_finite_where_an_error_is_the_smallest():
    a = np.full((1, 4, 4, 3), 100, np.uint8)
    assert psnr(a, a, smallest_error=1e-10).tolist() == [pytest.approx(20 * np.log10(255) + 100)]


def test_png_bytes_hold_the_pixels_and_nothing_else():
    image = images(1, 5, 7)[0]
    assert png(image) == png(image.copy())
    assert [chunk for chunk in (b"tEXt", b"tIME", b"pHYs") if chunk in png(image)] == []
    np.testing.assert_array_equal(decode(png(image)), image)


def test_decoding_makes_every_mode_rgb_and_crops_where_asked():
    gray = np.tile(np.arange(40, dtype=np.uint8), (20, 1))
    pixels = decode(png(gray[..., None].repeat(4, axis=2)))
    assert pixels.shape == (20, 40, 3)
    assert pixels.flags.writeable
    cropped = decode(png(gray[..., None].repeat(3, axis=2)), 16)
    np.testing.assert_array_equal(cropped, center_crop(PIL.Image.fromarray(gray), 16))


def test_what_cannot_be_decoded_says_why():
    whole = png(images(1, 64, 64)[0])
    with pytest.raises(UnreadableImage, match="not an image in one of the formats PNG, JPEG"):
        decode(b"GIF")
    with pytest.raises(UnreadableImage, match="OSError: .*truncated"):
        decode(whole[: len(whole) // 2])
    ppm = b"P6 1 1 255 abc"  # Pillow could, but formats like it are not ours
    with pytest.raises(UnreadableImage, match="not an image"):
        decode(ppm)


@pytest.mark.filterwarnings("ignore:Image size")
def test_more_pixels_than_are_safe_are_not_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UnreadableImage, match="8x8 pixels are more than Pillow's safety limit"):
        decode(png(images(1, 8, 8)[0]))


@pytest.mark.parametrize("shape", CROPS)
def test_crop_is_the_references_to_the_byte(shape: str):
    cropped = center_crop(PIL.Image.fromarray(CASES["crop_in_" + shape]), 32)
    np.testing.assert_array_equal(cropped, CASES["crop32_" + shape])


def test_crop_enlarges_small_pictures_and_makes_every_mode_rgb():
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (5, 1))
    gray = center_crop(PIL.Image.fromarray(ramp), 16)
    assert gray.shape == (16, 16, 3)
    assert gray.dtype == np.uint8
    assert np.array_equal(gray[..., 0], gray[..., 2])
    assert gray[0, 0, 0] < gray[0, -1, 0]
    assert gray.flags.writeable  # torch warns of arrays that are not


def test_crop_of_any_size_is_full_of_picture():
    for side in range(17, 130):  # for some, side * (32 / side) is just below 32
        assert center_crop(PIL.Image.new("RGB", (side, side + 3), "white"), 32).min() == 255
