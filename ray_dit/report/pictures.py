"""Pictures to PNG bytes: grids, rows and strips; knows neither models nor files, only uint8 RGB arrays and Pillow."""

import io

import numpy as np
import PIL.Image
from numpy.typing import NDArray

SMALLEST_SIDE = 64
"""Pictures smaller than this are enlarged by a whole factor, without smoothing, so that each pixel shows."""
PAD = 2
"""Pixels between two pictures."""


def grid(images: NDArray[np.uint8], columns: int, *, smallest_side: int = SMALLEST_SIDE) -> bytes:
    """One PNG with the pictures in rows of ``columns``, transparent between them.

    Args:
        images: uint8 [N, H, W, 3], any N; the last row may be short.
        columns: pictures a row.
        smallest_side: pictures with a shorter side are enlarged by the smallest whole factor that reaches it.

    Raises:
        ValueError: another shape or type, or no columns.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"a grid is made of uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}")
    if columns < 1:
        raise ValueError(f"a grid needs at least one column, got {columns}")
    large = enlarge(images, smallest_side)
    rows = max(1, -(-len(large) // columns))
    height, width = large.shape[1] + PAD, large.shape[2] + PAD
    canvas = np.zeros((rows * height - PAD, columns * width - PAD, 4), np.uint8)
    for index, image in enumerate(large):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height - PAD, left : left + width - PAD, :3] = image
        canvas[top : top + height - PAD, left : left + width - PAD, 3] = 255
    return png(canvas)


def enlarge(images: NDArray[np.uint8], smallest_side: int = SMALLEST_SIDE) -> NDArray[np.uint8]:
    """Repeats pixels of [N, H, W, C] so often that the shorter side reaches ``smallest_side``."""
    factor = max(1, -(-smallest_side // min(images.shape[1:3])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of one picture [H, W, 3 or 4]; the same bytes for the same pixels."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def psnr(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each picture [N, H, W, 3] against its other; infinite where equal."""
    difference = images.astype(np.float64) - others.astype(np.float64)
    mse = np.square(difference).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / mse)


def thumbnails(images: NDArray[np.uint8], largest_side: int) -> NDArray[np.uint8]:
    """Pictures [N, H, W, 3] brought down to ``largest_side`` pixels; smaller ones as they are."""
    height, width = images.shape[1:3]
    if max(height, width) <= largest_side:
        return images
    scale = largest_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in small])
