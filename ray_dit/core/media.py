"""Images in memory: PNG bytes and back, the ADM crop, grids, thumbnails, PSNR.

Knows neither models nor files.

N images, H height, W width. An image is uint8 [H, W, 3], RGB, 0..255; a grid has a fourth channel, its
opacity.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray

from ray_dit.core.to_rgb import Decoding, Seen, UnreadableImage, to_rgb

CODECS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What Pillow may decode, whatever a file's name claims."""
Encoding = Literal["png", "jpeg", "webp", "bmp"]
"""How one image is stored; bmp is plain pixels with a head."""
SUFFIX_OF: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "bmp": ".bmp"}
"""What the names of such files end in."""
PNG_LEVEL, QUALITY = 6, 95
"""Of zlib, 0 (none) to 9, and of JPEG and WebP, 1 to 100, where nothing else was asked for."""
PLAIN = Decoding()
"""The way to decode where nothing else was asked for."""
STRIP = 16
"""An image so many times as long as it is wide is cropped before it is resized: resized as a whole, a file of
a few bytes could fill the memory."""
MARGIN = 16
"""Pixels kept around the part of a strip, at least as many as a bicubic kernel reaches."""
LONGEST_STRIP, MOST_PIXELS_OF_A_STRIP = 1000, 4000 * 4000
"""Beyond both, it is refused: hardly any of it would be seen, and to decode it takes all of it."""
SMALLEST_SIDE = 64
"""In a grid, images smaller than this are enlarged by a whole factor, without smoothing, so that each pixel
shows."""
PAD = 2
"""Pixels between two images of a grid."""


@dataclass(frozen=True)
class DecodedImage:
    """An image as pixels, and what had to be done to its own."""

    pixels: UInt8[np.ndarray, "H W 3"]
    conversions: tuple[str, ...]
    """Short names, sorted, such as ``grey16``, ``palette``, ``transparent``; none of a plain RGB image."""


def png(image: UInt8[np.ndarray, "H W channels"]) -> bytes:
    """PNG bytes of one image, RGB or RGBA; the same bytes for the same pixels, without clock or text."""
    return encode(image)


def encode(
    image: UInt8[np.ndarray, "H W channels"],
    encoding: Encoding = "png",
    *,
    png_level: int = PNG_LEVEL,
    quality: int = QUALITY,
) -> bytes:
    """One image as a file; the same bytes for the same pixels and settings, with one version of Pillow.

    Of the settings only the one that belongs to the encoding counts: see ``PNG_LEVEL`` and ``QUALITY``.
    """
    settings: dict[str, dict[str, int]] = {
        "png": {"compress_level": png_level},
        "jpeg": {"quality": quality},
        "webp": {"quality": quality},
        "bmp": {},
    }
    sink = io.BytesIO()
    PIL.Image.fromarray(image).save(sink, format=encoding.upper(), **settings[encoding])
    return sink.getvalue()


def decode(data: bytes, size: int | None = None, decoding: Decoding = PLAIN) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of ``decode_image``."""
    return decode_image(data, size, decoding).pixels


def decode_image(data: bytes, size: int | None = None, decoding: Decoding = PLAIN) -> DecodedImage:
    """An encoded image as RGB, of an animation the first frame; ``to_rgb.py`` says how.

    With ``size``, it is the middle square at that size (``center_crop``). Raises UnreadableImage for bytes in
    no format of ``CODECS``, damaged ones, values without a known meaning, and more pixels than Pillow thinks
    safe.
    """
    seen: Seen | None = None
    try:
        with PIL.Image.open(io.BytesIO(data), formats=CODECS) as image:
            seen = Seen(image.format, image.mode, *image.size)
            _refuse_bombs(image.size)
            image.load()
            rgb, conversions = to_rgb(image, decoding, png_bits=data[24] if image.format == "PNG" else None)
            pixels = np.array(rgb) if size is None else center_crop(rgb, size)
            if _is_animated(image):
                conversions = tuple(sorted((*conversions, "first-frame")))
            return DecodedImage(pixels, conversions)
    except UnreadableImage as error:
        error.seen = seen
        raise
    except PIL.UnidentifiedImageError as error:  # its own text names an address in memory
        raise UnreadableImage(f"not an image in one of the formats {', '.join(CODECS)}") from error
    except Exception as error:  # Pillow raises nearly anything on broken bytes
        raise UnreadableImage(f"{type(error).__name__}: {error}", seen=seen) from error


def _refuse_bombs(shape: tuple[int, int]) -> None:
    pixels, (short, long) = shape[0] * shape[1], sorted(shape)
    if pixels > (PIL.Image.MAX_IMAGE_PIXELS or 89_478_485):
        raise UnreadableImage(
            f"{shape[0]}x{shape[1]} pixels are more than Pillow's safety limit", "too-large"
        )
    if long > LONGEST_STRIP * short and pixels > MOST_PIXELS_OF_A_STRIP:
        raise UnreadableImage(f"{shape[0]}x{shape[1]} pixels are too long a strip", "too-thin")


def _is_animated(image: PIL.Image.Image) -> bool:
    with contextlib.suppress(Exception):  # a damaged second frame says nothing of the first
        return bool(getattr(image, "is_animated", False))
    return False


def center_crop(image: PIL.Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square of an image at ``size`` pixels, RGB, as in ADM (Dhariwal & Nichol 2021).

    Halved by box averages while the shorter side is at least twice ``size``, then bicubic to it exactly, then
    cut. Of a strip (``STRIP``) only the part that is kept is resized: the same within a level.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=PIL.Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    if max(image.size) > STRIP * min(image.size):
        return np.array(_resize_part(image, shape, (left, top), size))
    image = image.resize(shape, resample=PIL.Image.Resampling.BICUBIC)
    return np.array(image.crop((left, top, left + size, top + size)))


def _resize_part(
    image: PIL.Image.Image, shape: tuple[int, int], corner: tuple[int, int], size: int
) -> PIL.Image.Image:
    """The square of ``size`` pixels at ``corner`` of what a strip would be, resized to ``shape``."""
    wide, high = image.width / shape[0], image.height / shape[1]
    left, top = max(0, int(corner[0] * wide) - MARGIN), max(0, int(corner[1] * high) - MARGIN)
    right, bottom = int((corner[0] + size) * wide) + MARGIN, int((corner[1] + size) * high) + MARGIN
    part = image.crop((left, top, min(image.width, right), min(image.height, bottom)))
    x, y = corner[0] * wide - left, corner[1] * high - top
    spans = [(x, x + size * wide), (y, y + size * high)]
    # In the order of Pillow, which resizes an axis at a time: each pass rounds, and cuts off what overshoots.
    vertical_first = image.height > image.width and shape[1] < image.height
    for axis in (1, 0) if vertical_first else (0, 1):
        (start, end), (width, height) = spans[axis], part.size
        box = (0, start, width, end) if axis else (start, 0, end, height)
        part = part.resize((width, size) if axis else (size, height), PIL.Image.Resampling.BICUBIC, box=box)
    return part


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
