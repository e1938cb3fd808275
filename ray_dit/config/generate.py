"""Settings of `ray-dit generate`."""

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from ray_dit.config.base import (
    Content,
    NonNegativeInt,
    Over,
    Placement,
    PositiveInt,
    Precision,
    Seed,
    Uri,
)
from ray_dit.config.sampler import GuidanceScale, SamplerConfig
from ray_dit.config.shards import ShardsConfig

DatasetFormatName = Literal["parquet", "webdataset", "folder", "npz"]
"""The formats datasets are written in: names of `ray_dit/formats/registry.py`."""


def _without_commas(value: Any) -> Any:
    """A list whose items may hold several, with commas between, as people write numbers."""
    if not isinstance(value, str | list):
        return value
    items = [value] if isinstance(value, str) else cast("list[Any]", value)
    words = [word for item in items for word in (item.split(",") if isinstance(item, str) else [item])]
    return [word for word in words if word != ""]


_CommasToo = BeforeValidator(_without_commas)


class GenerateConfig(ShardsConfig):
    """`ray-dit generate`: as many labelled images as asked for, in shards."""

    model: Placement[Uri]
    """Model folder."""
    num_images: Content[PositiveInt | None] = None
    """Images in all; this, per_class or requests."""
    per_class: Content[PositiveInt | None] = None
    """Images per class; this, num_images or requests."""
    requests: Placement[Uri | None] = None
    """JSONL, CSV or Parquet with a row for each image: label (a name or number), and where wanted seed,
    guidance_scale, num_inference_steps, sampler."""
    classes: Content[tuple[str, ...] | None] = None
    """Classes by name or number; all by default."""
    labels: Content[Literal["balanced", "random"]] = "balanced"
    """balanced: the classes in turn; random: each image's class is drawn by the seed and its number."""
    guidance_scales: Content[Annotated[tuple[GuidanceScale, ...] | None, _CommasToo]] = None
    """Scales of which each image is given one, drawn by the seed and its number; in place of
    sampler.guidance_scale."""
    format: Content[DatasetFormatName] = "parquet"
    """parquet (for Hugging Face), webdataset (tars), folder (a file per image), npz (plain pixels, as FID
    scripts read them)."""
    image_format: Content[Literal["png", "jpeg", "webp"]] = "png"
    """How each image is stored; not for npz."""
    png_level: Content[Annotated[int, Field(ge=0, le=9)]] = 6
    """zlib's level, for png: 1 is fastest, 9 smallest."""
    quality: Content[Annotated[int, Field(ge=1, le=100)]] = 95
    """Of jpeg and webp."""
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
    vae_precision: Content[Precision] = "float32"
    """What the VAE computes in; bfloat16 is faster on GPUs and changes pixels by a few levels."""
    compile: Content[bool] = False
    """Compile the transformer and the VAE's decoder before the first shard: faster, with other last bits."""
    use_gpu: Placement[bool] = False
    """Give each actor a GPU."""
    extend: Placement[bool] = False
    """Add images to a finished dataset in output, up to a larger num_images or per_class; what is there
    stays."""
    repair: Placement[bool] = False
    """First read all that is there again, and make damaged or missing shards anew."""

    preview: Placement[Uri | None] = None
    """PNG outside output that shows some of the newest images, drawn anew at times while the job runs."""
    only: Placement[Annotated[tuple[NonNegativeInt, ...] | None, _CommasToo]] = None
    """Make only the images of these numbers of the dataset in output, whose settings are taken from there;
    they go to only_output."""
    only_output: Placement[Uri | None] = None
    """Folder for the images of only."""

    @model_validator(mode="after")
    def _count(self) -> "GenerateConfig":
        counts = [self.num_images, self.per_class, self.requests]
        given = sum(count is not None for count in counts)
        if self.only is not None:
            self._check_only(given)
        elif given != 1:
            raise ValueError("give one of num_images, per_class and requests")
        if self.only is None and self.only_output is not None:
            raise ValueError("only_output belongs to only: give the numbers of images there")
        if self.classes == ():
            raise ValueError("classes needs a name or number, or leave it out for all of them")
        if self.guidance_scales == ():
            raise ValueError("guidance_scales needs a number, or leave it out")
        return self

    def _check_only(self, given: int) -> None:
        if not self.only:
            raise ValueError("only needs the number of an image")
        if self.only_output is None:
            raise ValueError("only needs only_output, the folder for its images")
        if self.extend or self.repair or self.preview is not None:
            raise ValueError("only makes images beside a dataset: leave extend, repair and preview out")
        if given > 1:
            raise ValueError("give one of num_images, per_class and requests, or none of them beside only")

    @model_validator(mode="after")
    def _fit(self) -> "GenerateConfig":
        if self.requests is not None:
            if self.classes is not None or self.labels != "balanced" or self.guidance_scales is not None:
                raise ValueError(
                    "requests tell each image's class and guidance: leave classes, labels and "
                    "guidance_scales out"
                )
            if self.extend:
                raise ValueError("a dataset made by requests can't be extended: make the others elsewhere")
        if self.labels == "random" and self.per_class is not None:
            raise ValueError("per_class fixes how many images a class has: give num_images for random labels")
        if self.guidance_scales is not None and "guidance_scale" in self.sampler.model_fields_set:
            raise ValueError("give either guidance_scales or sampler.guidance_scale")
        self._check_encoding()
        return self

    def _check_encoding(self) -> None:
        given = self.model_fields_set
        if self.format == "npz" and given & {"image_format", "png_level", "quality"}:
            raise ValueError("npz holds plain pixels: leave image_format, png_level and quality out")
        if "quality" in given and self.image_format == "png":
            raise ValueError("png loses nothing, so it has no quality: give png_level, or image_format jpeg")
        if "png_level" in given and self.image_format != "png":
            raise ValueError(f"png_level belongs to png: give quality for {self.image_format}")
