"""An image of any kind as 8-bit RGB, with a short name for each conversion that took.

Knows Pillow's images, neither files nor crops. Every rule is a function of the image and ``Decoding`` alone:

* Greys of 16 bits are scaled by their full range, those of 12 bits (TIFF) by theirs. Where no value reaches a
  quarter of 16 bits, nobody can tell a dark image from one of fewer bits: it is refused, unless the white
  level is told.
* Greys of 32 bits and floats are taken as levels where they lie in 0..255 (floats in 0..1 as fractions), and
  are else scaled by the image's own smallest and largest value.
* Transparency of every kind is composited on a background; a channel that is opaque all over changes nothing.
* CMYK by Pillow's plain formula, inverted in JPEGs that have Adobe's marker. Colour profiles are not used.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import PIL.Image
import PIL.ImageChops
import PIL.ImageColor
from numpy.typing import NDArray

BLOCK = 1 << 22
"""Pixels converted at once, which bounds the memory beside the image and the result."""
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of a TIFF."""
ORIENTATION = 0x0112
NAMES = {"1": "bilevel", "L": "grey", "P": "palette", "I": "grey32", "F": "float"}
"""What a conversion is called, by Pillow's mode without its alpha; other modes by their own name."""
FLIPS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""What brings an image of an EXIF orientation upright."""


@dataclass(frozen=True)
class Seen:
    """What is known of an image before its pixels are: as Pillow names it."""

    format: str | None
    mode: str
    width: int
    height: int


class UnreadableImage(ValueError):
    """The bytes are no image that can be decoded to the end; the message says why, ``code`` in one word.

    ``seen`` is what was known of it by then.
    """

    def __init__(self, message: str, code: str = "unreadable", seen: Seen | None = None) -> None:
        super().__init__(message)
        self.code, self.seen = code, seen


@dataclass(frozen=True)
class Decoding:
    """What decides the pixels of an image beside its bytes."""

    background: str = "white"
    """Under transparency: a colour's name, or ``rrggbb`` in hexadecimal digits."""
    exif_orientation: bool = False
    """Turn an image as its EXIF data say."""
    white_level: float | None = None
    """The value that is white in greys of more than 8 bits; None for the rules above."""


def to_rgb(
    image: PIL.Image.Image, decoding: Decoding, *, png_bits: int | None = None
) -> tuple[PIL.Image.Image, tuple[str, ...]]:
    """A loaded image as mode RGB, and the sorted names of the conversions.

    ``png_bits`` are the bits per channel in the file, where it is a PNG. Raises UnreadableImage where the
    rules leave open what its values mean, ValueError for modes that Pillow cannot convert.
    """
    done: set[str] = set()
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    base = "grey16" if image.mode.startswith("I;16") else image.mode.rstrip("Aa")
    if base != "RGB":
        done.add(NAMES.get(base, base.lower()))
    if deep:
        alpha = _alpha_of_grey(image)
        image = _eight_bits(image, decoding.white_level)
        if alpha is not None:
            image.putalpha(alpha)
    else:
        _fit_transparency(image, png_bits)
    rgb = _opaque(image, decoding.background, done) if image.has_transparency_data else _plain(image)
    if decoding.exif_orientation and (flip := _flip(image)) is not None:
        rgb = rgb.transpose(flip)
        done.add("turned")
    return rgb, tuple(sorted(done))


def _plain(image: PIL.Image.Image) -> PIL.Image.Image:
    """RGB of an image without transparency."""
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = PIL.ImageChops.invert(image)  # Pillow takes every CMYK JPEG for an inverted one of Adobe's
    return image if image.mode == "RGB" else image.convert("RGB")


def _opaque(image: PIL.Image.Image, background: str, done: set[str]) -> PIL.Image.Image:
    """RGB of an image over a background, band by band."""
    color = _color(background)
    rgb = PIL.Image.new("RGB", image.size)
    height = max(1, BLOCK // image.width)
    for top in range(0, image.height, height):
        band = image.crop((0, top, image.width, min(top + height, image.height))).convert("RGBA")
        alpha = band.getchannel("A")
        if cast("tuple[int, int]", alpha.getextrema())[0] == 255:
            rgb.paste(band.convert("RGB"), (0, top))
        else:
            below = PIL.Image.new("RGB", band.size, color)
            below.paste(band.convert("RGB"), mask=alpha)
            rgb.paste(below, (0, top))
            done.add("transparent")
    return rgb


def _color(name: str) -> tuple[int, ...]:
    try:
        return PIL.ImageColor.getrgb(name)[:3]
    except ValueError:
        return PIL.ImageColor.getrgb(f"#{name}")[:3]


def _fit_transparency(image: PIL.Image.Image, png_bits: int | None) -> None:
    """Brings the one transparent colour of a PNG to the 8 bits that Pillow has brought the pixels to."""
    clear = image.info.get("transparency")
    if image.mode == "RGB" and png_bits == 16 and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in cast("tuple[int, ...]", clear))
    elif image.mode == "L" and png_bits in (2, 4) and isinstance(clear, int):
        image.info["transparency"] = clear * 255 // (2**png_bits - 1)


def _alpha_of_grey(image: PIL.Image.Image) -> PIL.Image.Image | None:
    """The opacity of a deep grey of which one value is transparent."""
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return None
    return PIL.Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8))


def _flip(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    try:
        return FLIPS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything on damaged EXIF data, which say nothing of the pixels
        return None


def _eight_bits(image: PIL.Image.Image, white_level: float | None) -> PIL.Image.Image:
    """Mode L of a grey of more than 8 bits."""
    tags: Any = getattr(image, "tag_v2", {})
    values: NDArray[Any] = np.asarray(image)
    if image.mode == "I" and _only(tags, BITS_PER_SAMPLE) == 32 and _only(tags, SAMPLE_FORMAT, 1) == 1:
        values = values.view(np.uint32)  # Pillow's mode knows signed ones alone
    if image.mode == "F" and not np.isfinite(values).all():
        raise UnreadableImage("it holds values that are no finite numbers", "not-finite")
    low, high = float(values.min()), float(values.max())
    if white_level is not None:
        black, white = 0.0, white_level
    elif image.mode.startswith("I;16"):
        black, white = 0.0, _white_of_16(int(high), bits=_only(tags, BITS_PER_SAMPLE, 16))
    else:
        black, white = _range_of(low, high, fractions=image.mode == "F")
    levels = _levels(values, black, white)
    inverted = (
        image.mode != "L" and _only(tags, PHOTOMETRIC, 1) == 0
    )  # where 0 is white, which Pillow ignores
    copied = PIL.Image.fromarray(255 - levels if inverted else levels)
    copied.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return copied


def _only(tags: Any, tag: int, default: int = 0) -> int:
    """The value of a TIFF's tag that has one value."""
    value: Any = tags.get(tag, default)
    return int(cast("tuple[Any, ...]", value)[0] if isinstance(value, tuple) else value)


def _white_of_16(high: int, *, bits: int) -> float:
    """The white level of a grey whose largest value is ``high``."""
    if bits == 16 and 0 < high < 1 << 14:
        raise UnreadableImage(
            f"its values of 16 bits end at {high}, so it is very dark or has fewer bits: give "
            "--images.white-level (65535 for 16 bits, 4095 for 12)",
            "dark-grey",
        )
    return float((1 << bits) - 1)


def _range_of(low: float, high: float, *, fractions: bool) -> tuple[float, float]:
    """The values that are black and white in a grey of 32 bits or of floats."""
    if fractions and 0 <= low and high <= 1:
        return 0.0, 1.0
    if 0 <= low and high <= 255:
        return 0.0, 255.0
    if low == high:
        raise UnreadableImage(
            f"all its values are {low:g}, of which nobody can tell the level: give --images.white-level",
            "unclear-level",
        )
    return low, high


def _levels(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """Levels 0..255 of values, the nearest, those outside of black and white at its ends."""
    flat = values.reshape(-1)
    levels = np.empty(flat.shape, np.uint8)
    for start in range(0, len(flat), BLOCK):
        part = (flat[start : start + BLOCK].astype(np.float64) - black) / (white - black)
        levels[start : start + BLOCK] = np.rint(np.clip(part, 0, 1) * 255)
    return levels.reshape(values.shape)
