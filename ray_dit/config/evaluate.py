"""Settings of `ray-dit evaluate`."""

from typing import Annotated

from pydantic import Field

from ray_dit.config.base import Content, ContentConfig, Placement, PositiveInt, Seed, Uri
from ray_dit.config.images import ImagesConfig
from ray_dit.config.shards import ShardsConfig


class ClassifierConfig(ContentConfig):
    """The small convolutional classifier that judges images."""

    steps: PositiveInt = 600
    batch_size: PositiveInt = 64
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    width: PositiveInt = 16
    """Channels of the first layer."""


class EvaluateConfig(ShardsConfig):
    """`ray-dit evaluate`: how good a generated dataset is, beside held-out real images."""

    images: ImagesConfig
    """The real images; the same split as encode's, so give it the same size and heldout."""
    dataset: Placement[Uri]
    """Folder made by generate."""
    classifier: ClassifierConfig = ClassifierConfig()
    seed: Content[Seed] = 0
