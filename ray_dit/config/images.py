"""The real images: where they are, and how one becomes a square."""

from ray_dit.config.base import Config, Content, Fraction, Placement, PositiveInt, Uri


class ImagesConfig(Config):
    """The images: a folder with one sub-folder per class, and how an image becomes a square."""

    uri: Placement[Uri]
    """Folder of images, one sub-folder per class: a path or any fsspec URI."""
    size: Content[PositiveInt] = 256
    """Height and width after the ADM centre crop, in pixels."""
    heldout: Content[Fraction] = 0.02
    """Part of the images no model ever trains on, chosen by a hash of the image's key."""
    max_bad: Placement[Fraction] = 0.01
    """Part of the images that may be unreadable before the stage fails; they are set aside and listed."""
