"""What travels over HTTP, as OpenAI's images API has it; our additions are marked.

`ImageRequest` and `ImagesResponse` are those of `api.compatibility: strict`; `OpenAIImageRequest` and
`OpenAIImagesResponse` are what the mode `openai` reads and answers. Bounds that the operator sets are not
here: `spec.read_spec` checks them, and `openapi.describe` puts them into the document.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_dit.config import SamplerName

Label = Annotated[int, Field(ge=0, lt=2**31)] | Annotated[str, Field(max_length=400)]
MAX_SEED = 2**53 - 1
"""Beyond it readers of JSON that know floats only, as a browser, would ask for another seed than is said."""
MAX_PROMPT = 32_000
"""Characters of a prompt that OpenAI takes at most."""


class ImageRequest(BaseModel):
    """Which images to make. Fields without the word "ours" are OpenAI's; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    prompt: Annotated[str, Field(max_length=400)] | None = None
    """The class: its name, or its number. Needed unless `class_labels` says it, or the model has no
    classes."""
    model: Annotated[str, Field(max_length=200)] | None = None
    """Name of a model from `/v1/models`; the first of them by default."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Number of images; 1 by default. With several `class_labels` it is their number."""
    size: Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = None
    """`auto`, or the size the model makes, such as `256x256`; another size is refused."""
    response_format: Literal["b64_json", "url"] | None = None
    """Only `b64_json`, the default: images are kept nowhere, so there are no links to them."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """png by default."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of jpeg and webp, 100 by default."""
    stream: bool | None = None
    """Answer with server-sent events: previews, then each image."""
    partial_images: Annotated[int, Field(ge=0)] | None = None
    """Previews per image, for streams; 0 by default. OpenAI allows 3."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Ours: the same seed, settings and model make the same images; by default random, and reported."""
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    """Ours: denoising steps; the model's default if left out."""
    guidance_scale: Annotated[float, Field(ge=0, le=20)] | None = None
    """Ours: how strongly images follow their class; 1 is off. The model's default if left out."""
    sampler: SamplerName | None = None
    """Ours: the model's default if left out."""
    class_labels: Annotated[list[Label], Field(min_length=1)] | None = None
    """Ours: one class per image, by number or name, instead of `prompt`; not beside one."""
    quality: Annotated[str, Field(max_length=20)] | None = None
    """Taken for compatibility; has no effect."""
    style: Annotated[str, Field(max_length=20)] | None = None
    """Taken for compatibility; has no effect."""
    background: Literal["auto", "opaque"] | None = None
    """Taken for compatibility; images are opaque."""
    moderation: Annotated[str, Field(max_length=20)] | None = None
    """Taken for compatibility; has no effect."""
    user: Annotated[str, Field(max_length=200)] | None = None
    """Taken for compatibility; has no effect."""


class OpenAIImageRequest(ImageRequest):
    """Which images to make.

    Fields without the word "ours" are OpenAI's. Whole numbers may be written as 2, 2.0 or "2"; an empty
    string is a field left out; fields not listed are ignored, and named in the header `x-ray-dit-warning`.
    """

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    """The class: its name or number, or a text in which one class is named. Needed unless `class_labels` says
    it, or the model has no classes."""
    size: Any = None
    """Anything; images have the size that the model makes, which the answer tells."""
    response_format: Literal["b64_json", "url"] | None = None
    """`b64_json`, or `url` for a `data:` URL that holds the image; both by default."""
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] | None = None
    """Ours: the same seed, settings and model make the same images; by default, and for -1, random, and
    reported."""
    quality: Any = None
    """Has no effect."""
    style: Any = None
    """Has no effect."""
    background: Any = None
    """Has no effect: images are opaque."""
    moderation: Any = None
    """Has no effect."""
    user: Any = None
    """Has no effect."""


class _Image(BaseModel):
    """What an image is of, and which of the request's it is."""

    revised_prompt: str | None = Field(description="Name of the class.")
    label: int | None = Field(description="Ours: number of the class.")
    index: int = Field(description="Ours: its place in the request; part, with the seed, of what decides it.")


class ImageData(_Image):
    """One image."""

    b64_json: str


class OpenAIImageData(_Image):
    """One image, in the form asked for; in both if none was."""

    b64_json: str = Field(default="", description="The file in base64; left out for `response_format: url`.")
    url: str = Field(
        default="",
        description="The file as a `data:` URL; left out for `response_format: b64_json`.",
    )


class InputTokensDetails(BaseModel):
    """All 0: a prompt here is the name of a class, not tokens."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """In place of tokens: denoising steps over all images, as output."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails

    @classmethod
    def of(cls, steps: int) -> "Usage":
        """That of so many denoising steps."""
        details = InputTokensDetails(image_tokens=0, text_tokens=0)
        return cls(input_tokens=0, output_tokens=steps, total_tokens=steps, input_tokens_details=details)


class _Images(BaseModel):
    """The images of one request, and the settings that made them."""

    created: int
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    usage: Usage
    model: str = Field(description="Ours.")
    seed: int = Field(description="Ours: ask with it again to get the same images.")
    num_inference_steps: int = Field(description="Ours.")
    guidance_scale: float = Field(description="Ours.")
    sampler: str = Field(description="Ours.")


class ImagesResponse(_Images):
    """The images of one request, and the settings that made them."""

    data: list[ImageData]


class OpenAIImagesResponse(_Images):
    """The images of one request, and the settings that made them."""

    data: list[OpenAIImageData]


class _StreamedImage(ImageData):
    """What each event with an image says."""

    created_at: int
    size: str
    quality: Literal["auto"]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    seed: int = Field(description="Ours.")
    num_inference_steps: int = Field(description="Ours.")


class PartialImageEvent(_StreamedImage):
    """A preview, in a stream."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int = Field(description="Which of this image's previews, from 0.")
    step: int = Field(description="Ours: denoising steps that it has had.")


class CompletedEvent(_StreamedImage):
    """A finished image, in a stream."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage


class ModelData(BaseModel):
    """A model; the fields after `owned_by` are ours."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    size: str
    num_classes: int
    num_inference_steps: int
    guidance_scale: float
    guidable: bool = Field(description="Whether guidance scales other than 1 mean anything.")
    sampler: str
    max_images: int = Field(description="Images per request.")
    max_inference_steps: int = Field(description="Steps per image.")
    max_total_steps: int = Field(description="Images times steps per request.")
    max_partial_images: int = Field(description="Previews per image.")


class ModelList(BaseModel):
    """The models served here."""

    object: Literal["list"]
    data: list[ModelData]


class LabelData(BaseModel):
    """A class of a model."""

    id: int
    name: str
    wordnet_id: str | None


class LabelList(BaseModel):
    """The classes of a model that match a search."""

    object: Literal["list"]
    data: list[LabelData]
    total: int = Field(description="Classes that match, of which `data` holds the first.")


class Status(BaseModel):
    """Whether requests are answered yet."""

    status: Literal["ok", "starting"]


class ErrorDetail(BaseModel):
    """What is wrong with a request, as OpenAI's API says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail
