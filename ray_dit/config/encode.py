"""Settings of `ray-dit encode`."""

from typing import Literal

from ray_dit.config.base import Content, Placement, PositiveInt, VaeSource
from ray_dit.config.images import ImagesConfig
from ray_dit.config.shards import ShardsConfig

EncodePrecision = Literal["float32", "bfloat16", "float16"]


class EncodeConfig(ShardsConfig):
    """`ray-dit encode`: images to latents (moments of the VAE's posterior) in shards."""

    images: ImagesConfig
    vae: Placement[VaeSource]
    """The VAE: a folder made by train-vae, any diffusers AutoencoderKL folder, or a hub id."""
    mirror: Content[bool] = True
    """Encode each image's mirror image too; turn it off where mirroring makes an image wrong (text,
    digits)."""
    shard_size: Content[PositiveInt] = 1024
    """Images per shard."""
    batch_size: Content[PositiveInt] = 32
    """Images the VAE sees at once."""
    precision: Content[EncodePrecision] = "float32"
    """What the VAE computes in; the manifest has the error against float32 on the first batch. Moments are
    stored in float16 either way."""
    use_gpu: Placement[bool] = False
    """Give each actor a GPU."""
    decode_threads: Placement[PositiveInt | None] = None
    """Threads per actor that decode images, beside those of torch; each reserves a CPU where nodes have
    enough. By default 1, with a GPU 4: to decode a photograph takes about 4 ms of a CPU."""
    repair: Placement[bool] = False
    """First read all that is there again, and make damaged or missing shards anew."""
    extend: Placement[bool] = False
    """Add the images that are there by now to finished latents, in files of their own beside the old ones."""

    @property
    def own_threads(self) -> int:
        """Those that decode."""
        return self.decode_threads or (4 if self.use_gpu else 1)
