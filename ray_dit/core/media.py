"""Images in memory: PNG bytes and back, the ADM crop, grids, thumbnails, PSNR.

Knows neither models nor files.

N images, H height, W width. An image is uint8 [H, W, 3], RGB, 0..255; a grid has a fourth channel, its
opacity.
"""

import io
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

CODECS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may decode, whatever a file's name claims."""
SMALLEST_SIDE = 64
"""In a grid, images smaller than this are enlarged by a whole factor, without smoothing, so that each pixel
shows."""
PAD = 2
"""Pixels between two images of a grid."""


class UnreadableImage(ValueError):
    """The bytes are no image that can be decoded to the end; the message says why."""


def png(image: UInt8[np.ndarray, "H W channels"]) -> bytes:
    """PNG bytes of one image, RGB or RGBA; the same bytes for the same pixels, without clock or text."""
    sink = io.BytesIO()
    PIL.Image.fromarray(image).save(sink, format="PNG")
    return sink.getvalue()


def decode(data: bytes, size: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of an encoded image as RGB; with ``size``, its middle square at that size (``center_crop``).

    Raises UnreadableImage for bytes in no format of ``CODECS``, damaged ones, and more pixels than Pillow
    thinks safe.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=CODECS) as image:
            if image.width * image.height > _most_pixels():
                raise UnreadableImage(
                    f"{image.width}x{image.height} pixels are more than Pillow's safety limit"
                )
            if size is not None and _is_strip(image.size, size):
                raise UnreadableImage(
                    f"{image.width}x{image.height} pixels are too long a strip to be brought to {size}"
                )
            image.load()
            rgb = image.convert("RGB")
            return np.array(rgb) if size is None else center_crop(rgb, size)
    except UnreadableImage:
        raise
    except PIL.UnidentifiedImageError as error:  # its own text names an address in memory
        # "picture", as in the quarantine.tsv of older datasets: the sentence is part of their bytes
        raise UnreadableImage(f"not a picture in one of the formats {', '.join(CODECS)}") from error
    except Exception as error:  # Pillow raises nearly anything on broken bytes
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _most_pixels() -> int:
    """Pillow's safety limit."""
    return PIL.Image.MAX_IMAGE_PIXELS or 89_478_485


def _is_strip(shape: tuple[int, int], size: int) -> bool:
    """Whether an image is so long that enlarging its shorter side to ``size`` could exhaust the memory.

    It is brought to that size before its middle is cut out: a file of a few KB may become many GB.
    """
    ratio = max(shape) / max(1, min(shape))
    return ratio > 16 and ratio * size * size > _most_pixels()


def center_crop(image: PIL.Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square of an image at ``size`` pixels, RGB, as in ADM (Dhariwal & Nichol 2021).

    Halved by box averages while the shorter side is at least twice ``size``, then bicubic to it exactly, then
    cut.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=PIL.Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    image = image.resize(shape, resample=PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def grid(images: NDArray[Any], columns: int, *, smallest_side: int = SMALLEST_SIDE) -> bytes:
    """One PNG with the images in rows of ``columns``, transparent between them.

    Args:
        images: uint8 [N, H, W, 3], any N; the last row may be short.
        columns: images per row.
        smallest_side: images with a shorter side are enlarged by the smallest whole factor that reaches it.

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


def enlarge(
    images: UInt8[np.ndarray, "N H W C"], smallest_side: int = SMALLEST_SIDE
) -> UInt8[np.ndarray, "N larger wider C"]:
    """Repeats pixels so often that the shorter side reaches ``smallest_side``."""
    factor = max(1, -(-smallest_side // min(images.shape[1:3])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def thumbnails(
    images: UInt8[np.ndarray, "N H W 3"], largest_side: int
) -> UInt8[np.ndarray, "N lower narrower 3"]:
    """Images brought down to ``largest_side`` pixels; smaller ones as they are."""
    height, width = images.shape[1:3]
    if max(height, width) <= largest_side:
        return images
    scale = largest_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = [PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in small])


def psnr(
    images: UInt8[np.ndarray, "N H W 3"], others: UInt8[np.ndarray, "N H W 3"], *, smallest_error: float = 0.0
) -> Float64[np.ndarray, " N"]:
    """Peak signal-to-noise ratio in dB of each image against its other.

    The mean squared error counts as ``smallest_error`` where it is less; with 0 equal images are infinitely
    good.
    """
    error = np.square(images.astype(np.float64) - others).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 20 * np.log10(255.0) - 10 * np.log10(np.maximum(error, smallest_error))
