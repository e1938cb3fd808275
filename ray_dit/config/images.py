"""The real pictures: where they are, and how one becomes a square."""

from ray_dit.config.base import Config, Content, Fraction, Placement, PositiveInt, Uri


class ImagesConfig(Config):
    """The pictures: a folder with one sub-folder a class, and how a picture becomes a square."""

    uri: Placement[Uri]
    """Folder of pictures, one sub-folder a class: a path or any fsspec URI."""
    size: Content[PositiveInt] = 256
    """Height and width after the ADM centre crop, in pixels."""
    heldout: Content[Fraction] = 0.02
    """Part of the pictures no model ever trains on, chosen by a hash of the picture's key."""
    max_bad: Placement[Fraction] = 0.01
    """Part of the pictures that may be unreadable before the stage fails; they are set aside and listed."""
