"""Settings of `ray-dit generate`."""

from typing import Annotated

from pydantic import model_validator

from ray_dit.config.base import Content, Over, Placement, PositiveInt, Precision, Seed, Uri
from ray_dit.config.sampler import SamplerConfig
from ray_dit.config.shards import ShardsConfig


class GenerateConfig(ShardsConfig):
    """`ray-dit generate`: as many labelled images as asked for, in shards."""

    model: Placement[Uri]
    """Model folder."""
    num_images: Content[PositiveInt | None] = None
    """Images in all, as evenly over the classes as possible; this or per_class."""
    per_class: Content[PositiveInt | None] = None
    """Images per class; this or num_images."""
    classes: Content[tuple[str, ...] | None] = None
    """Classes by name or number; all by default."""
    sampler: Annotated[SamplerConfig, Over("the model's own")] = SamplerConfig()
    """What differs from the sampler stored with the model (`ray-dit info MODEL` shows it)."""
    seed: Content[Seed] = 0
    shard_size: Content[PositiveInt] = 1000
    """Images per shard."""
    batch_size: Content[PositiveInt] = 50
    """Images the model sees at once; always that many (the last is padded), since it decides the last
    bits."""
    precision: Content[Precision] = "float32"
    """What the transformer's matrix products compute in; bfloat16 is faster and changes pixels a little."""
    compile: Content[bool] = False
    """Compile the transformer before the first shard: faster, with other last bits."""
    use_gpu: Placement[bool] = False
    """Give each actor a GPU."""
    extend: Placement[bool] = False
    """Add images to a finished dataset in output, up to a larger num_images or per_class; what is there
    stays."""
    repair: Placement[bool] = False
    """First read all that is there again, and make damaged or missing shards anew."""

    @model_validator(mode="after")
    def _count(self) -> "GenerateConfig":
        if (self.num_images is None) == (self.per_class is None):
            raise ValueError("give one of num_images and per_class")
        if self.classes == ():
            raise ValueError("classes needs a name or number, or leave it out for all of them")
        return self
