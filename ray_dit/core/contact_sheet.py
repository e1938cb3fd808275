"""Images in named rows, as one PNG; knows neither models nor files."""

from collections.abc import Mapping

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import UInt8

from ray_dit.core.media import PAD, SMALLEST_SIDE, enlarge, png

TEXT_SIZE = 16
LONGEST_NAME = 32
"""Characters of a name that are shown."""
INK, PAPER = (0, 0, 0), (255, 255, 255)


def contact_sheet(
    rows: Mapping[str, UInt8[np.ndarray, "N H W 3"]], *, smallest_side: int = SMALLEST_SIDE
) -> bytes:
    """PNG with a row per name: the name and its images, on white.

    Rows may have different numbers of images, all of one size; images with a shorter side than
    ``smallest_side`` are enlarged by a whole factor. ValueError where there is no image.
    """
    large = {name: enlarge(images, smallest_side) for name, images in rows.items() if len(images)}
    if not large:
        raise ValueError("a contact sheet without images")
    font = PIL.ImageFont.load_default(TEXT_SIZE)
    names = [_short(name) for name in large]
    height, width = (side + PAD for side in next(iter(large.values())).shape[1:3])
    height = max(height, TEXT_SIZE + 2 * PAD)
    left = round(max(font.getlength(name) for name in names)) + 4 * PAD
    columns = max(map(len, large.values()))
    sheet = PIL.Image.new("RGB", (left + columns * width, PAD + len(large) * height), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for number, (name, images) in enumerate(zip(names, large.values(), strict=True)):
        top = PAD + number * height
        draw.text((2 * PAD, top + (height - PAD) // 2), name, fill=INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(PIL.Image.fromarray(image), (left + column * width, top))
    return png(np.asarray(sheet))


def _short(name: str) -> str:
    """A name in one line: without what the font draws as a line break, and not too long."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
