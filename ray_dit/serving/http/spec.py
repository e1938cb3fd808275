"""A request's body, checked against its model and the limits, as the spec a backend is asked."""

import secrets

from ray_dit.config.serve import LimitsConfig
from ray_dit.errors import UserError
from ray_dit.serving.backend import ImageSpec, ModelInfo
from ray_dit.serving.http.errors import ApiError, invalid
from ray_dit.serving.http.schemas import ImageRequest


def read_spec(body: ImageRequest, info: ModelInfo, limits: LimitsConfig) -> ImageSpec:
    """What the body asks of this model; ApiError 400, with the parameter, where model or limits say no."""
    if body.n is not None and body.n > limits.max_images:
        raise _too_many_images(limits)
    labels = _labels(body, info)
    steps = body.num_inference_steps
    total = len(labels) * (steps or info.sampler.num_steps)
    if body.response_format == "url":
        raise invalid("response_format", "images are kept nowhere, so there are no URLs: take b64_json")
    if body.size not in (None, "auto", size(info)):
        raise invalid("size", f"model {info.name!r} makes images of {size(info)}")
    if len(labels) > limits.max_images:
        raise _too_many_images(limits)
    if steps is not None and steps > limits.max_inference_steps:
        raise invalid("num_inference_steps", f"at most {limits.max_inference_steps} steps")
    if total > limits.max_total_steps:
        raise invalid("n", f"n x steps is {total}; at most {limits.max_total_steps} per request")
    previews = (body.partial_images or 0) if body.stream else 0
    if previews > limits.max_partial_images:
        raise invalid("partial_images", f"at most {limits.max_partial_images} previews per image")
    return ImageSpec(
        labels=labels,
        seed=secrets.randbelow(2**32) if body.seed is None else body.seed,
        sampler=body.sampler,
        num_inference_steps=steps,
        guidance_scale=body.guidance_scale,
        previews=previews,
        seconds=limits.request_seconds,
        output_format=body.output_format or "png",
        output_compression=100 if body.output_compression is None else body.output_compression,
        image_steps=total,
    )


def _too_many_images(limits: LimitsConfig) -> ApiError:
    return invalid("n", f"at most {limits.max_images} images per request")


def size(info: ModelInfo) -> str:
    """Of the model's images, as OpenAI's API writes it."""
    return f"{info.image_size}x{info.image_size}"


def _labels(body: ImageRequest, info: ModelInfo) -> tuple[int, ...]:
    """The class of each image."""
    if not len(info.labels):
        if body.class_labels is not None:
            raise invalid("class_labels", f"model {info.name!r} has no classes: leave class_labels out")
        return (0,) * (body.n or 1)
    if body.class_labels is not None and body.prompt:
        raise invalid("prompt", "prompt and class_labels both say the class: leave one of them out")
    if body.class_labels is not None:
        param, asked = "class_labels", body.class_labels
    elif body.prompt:
        param, asked = "prompt", (body.prompt,)
    else:
        raise invalid("prompt", "say which class: its name or number as prompt, or class_labels")
    try:
        labels = tuple(info.labels.resolve(label) for label in asked)
    except UserError as error:
        raise invalid(param, str(error), code="unknown_class") from None
    if body.n is not None and len(labels) not in (1, body.n):
        raise invalid("n", f"n is {body.n}, but there are {len(labels)} class_labels")
    return labels * body.n if body.n is not None and len(labels) == 1 else labels
