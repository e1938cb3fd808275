"""A backend's messages as bodies and events in the shape of OpenAI's images API. Knows no connection."""

import base64
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from ray_dit.config import SamplerConfig
from ray_dit.serving.backend import Complete, ImageSpec, Message, ModelInfo, Partial, Refused
from ray_dit.serving.http import schemas
from ray_dit.serving.http.errors import refusal
from ray_dit.serving.http.spec import size

Form = Literal["b64_json", "url"]
BOTH: tuple[Form, ...] = ("b64_json", "url")
"""Clients that do not say which form they want read one of them, by the model they think they ask."""


class Answer:
    """What every form of answer says about a spec and the sampler it was settled to.

    ``forms`` are those of each image in an answer without streaming; events hold base64 only, as OpenAI's do.
    """

    def __init__(
        self,
        info: ModelInfo,
        spec: ImageSpec,
        sampler: SamplerConfig,
        forms: tuple[Form, ...] = ("b64_json",),
    ) -> None:
        self.info, self.spec, self.forms = info, spec, forms
        self.created = int(time.time())
        self.steps = sampler.num_steps
        self.settled: dict[str, Any] = {
            "num_inference_steps": sampler.num_steps,
            "guidance_scale": sampler.guidance_scale,
            "sampler": sampler.name,
        }

    async def collect(
        self, messages: AsyncIterator[Message], request_id: str
    ) -> schemas.OpenAIImagesResponse:
        """The answer without streaming, when the last message is here. ApiError where it is a refusal."""
        images: dict[int, schemas.OpenAIImageData] = {}
        async for message in messages:
            if isinstance(message, Refused):
                raise refusal(message, request_id)
            if isinstance(message, Complete):
                images[message.index] = schemas.OpenAIImageData(
                    **self._forms(message), **self._facts(message)
                )
        return schemas.OpenAIImagesResponse(
            created=self.created,
            data=[images[index] for index in sorted(images)],
            background="opaque",
            output_format=self.spec.output_format,
            size=size(self.info),
            usage=schemas.Usage.of(self.steps * len(images)),
            model=self.info.name,
            seed=self.spec.seed,
            **self.settled,
        )

    def event(
        self, message: Partial | Complete, partial_index: int
    ) -> schemas.PartialImageEvent | schemas.CompletedEvent:
        """One event of a stream."""
        fields: dict[str, Any] = {
            "b64_json": _base64(message),
            **self._facts(message),
            "created_at": int(time.time()),
            "size": size(self.info),
            "quality": "auto",
            "background": "opaque",
            "output_format": self.spec.output_format,
            "seed": self.spec.seed,
            "num_inference_steps": self.steps,
        }
        if isinstance(message, Partial):
            return schemas.PartialImageEvent(**fields, partial_image_index=partial_index, step=message.step)
        return schemas.CompletedEvent(**fields, usage=schemas.Usage.of(self.steps))

    def _forms(self, message: Complete) -> dict[Form, str]:
        """The file in each form that was asked for."""
        text = _base64(message)
        start: dict[Form, str] = {"b64_json": "", "url": f"data:image/{self.spec.output_format};base64,"}
        return {form: start[form] + text for form in self.forms}

    def _facts(self, message: Partial | Complete) -> dict[str, Any]:
        """What the image is of, and which of the request's it is."""
        names = self.info.labels.names
        label = self.spec.labels[message.index] if names else None
        name = None if label is None else names[label]
        return {"revised_prompt": name, "label": label, "index": message.index}


def _base64(message: Partial | Complete) -> str:
    return base64.b64encode(message.data).decode()
