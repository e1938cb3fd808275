"""The real images: where they are, and how one becomes a square."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ray_dit.config.base import Config, Content, Fraction, Placement, PositiveInt, Uri


def _color(name: str) -> str:
    """``white``, ``black`` or six lower-case hexadecimal digits; ValueError for anything else."""
    digits = name.strip().lower().removeprefix("#")
    named = {"ffffff": "white", "000000": "black"}
    if digits in named.values() or re.fullmatch("[0-9a-f]{6}", digits):
        return named.get(digits, digits)
    raise ValueError(f"{name!r} is no colour: give white, black or six hexadecimal digits such as 808080")


ImageFormatName = Literal["folder", "parquet", "zip", "tars", "webdataset", "tar"]
Color = Annotated[str, AfterValidator(_color)]
PositiveFloat = Annotated[float, Field(gt=0)]


class ImagesConfig(Config):
    """The images: where they lie and in which layout, and how an image becomes a square."""

    uri: Placement[Uri]
    """Folder of images, one sub-folder per class, or a folder of archives, one archive, or several by a
    pattern such as data/train-*.parquet: a path or any fsspec URI; s3://anonymous@BUCKET for a public one."""
    format: Placement[ImageFormatName | None] = None
    """How the images lie there; by default seen from the first names. docs/images.md has the layouts."""
    labels: Placement[Uri | None] = None
    """File that gives each image's class by its name (CSV, JSONL, JSON, text), for images that lie in no
    folders of classes."""
    size: Content[PositiveInt] = 256
    """Height and width after the ADM centre crop, in pixels."""
    background: Content[Color] = "white"
    """What shows under transparent pixels: white, black, or six hexadecimal digits such as 808080."""
    exif_orientation: Content[bool] = False
    """Turn each image as its EXIF data say; the reference implementations do not."""
    white_level: Content[PositiveFloat | None] = None
    """The value that is white in greys of more than 8 bits, such as 4095 for 12 bits in 16; by default the
    full range of 16 bits, and of 32 bits and floats what docs/images.md says."""
    heldout: Content[Fraction] = 0.02
    """Part of the images no model ever trains on, chosen by a hash of the image's key."""
    max_bad: Placement[Fraction] = 0.01
    """Part of the images that may be unreadable before the stage fails; they are set aside and listed."""
