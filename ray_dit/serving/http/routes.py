"""The routes: what each answers; how a body becomes a backend's spec, and its messages an answer."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from ray_dit.config.serve import ApiConfig, LimitsConfig
from ray_dit.serving.backend import (
    Accepted,
    Backend,
    Complete,
    Ended,
    ImageSpec,
    Message,
    ModelInfo,
    Partial,
    Refused,
)
from ray_dit.serving.http import schemas
from ray_dit.serving.http.answers import BOTH, Answer, Form
from ray_dit.serving.http.compatibility import fit, relax, warning_header
from ray_dit.serving.http.errors import ApiError, checked, not_ready, refusal
from ray_dit.serving.http.limiter import Limiter
from ray_dit.serving.http.openapi import errors, images
from ray_dit.serving.http.record import RequestRecord, record_of
from ray_dit.serving.http.spec import read_spec, size
from ray_dit.serving.http.streaming import server_sent_events, until_gone, until_late

INFO_SECONDS = 5.0
"""How long a route waits for what a model is, or whether it is ready."""
GRACE_SECONDS = 5.0
"""Beyond its deadline a request has so long, in which a backend that works says itself that it is too
late."""


@dataclass(frozen=True)
class _Shape:
    """How images are answered: as events or whole, in which forms, under which headers."""

    stream: bool
    forms: tuple[Form, ...]
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class Routes:
    """The API over these backends, the first of them the default. ValueError for a wrong alias."""

    def __init__(self, backends: Mapping[str, Backend], config: ApiConfig) -> None:
        self.backends, self.config = dict(backends), config
        self.aliases = config.models_by_alias(self.backends)
        self.limiter = Limiter(config.limits)

    def add_to(self, app: FastAPI) -> None:
        """Adds the routes."""
        openai = self.config.compatibility == "openai"
        app.post(
            "/v1/images/generations",
            response_model=schemas.OpenAIImagesResponse if openai else schemas.ImagesResponse,
            responses=images(warns=openai) | errors(404, 408, 413, 415, 429, 504),
            summary="Make images",
            operation_id="generate",
        )(self.generate_as_openai if openai else self.generate)
        for path, route, answers, summary in (
            ("/v1/models", self.models, errors(), "List models"),
            ("/v1/models/{model}", self.model, errors(404), "One model"),
            ("/v1/labels", self.labels, errors(404), "Search a model's classes"),
            ("/health", self.health, errors(), "Is the server alive?"),
            ("/ready", self.ready, errors(), "Would it take a request?"),
        ):
            app.get(path, responses=answers, summary=summary)(route)

    async def generate(self, body: schemas.ImageRequest, request: Request) -> Response:
        """Makes images of a class, or of one class each."""
        backend = self._backend(body.model)
        info = await _info(backend)
        spec = read_spec(body, info, self.config.limits)
        return await self._make(request, backend, info, spec, _Shape(bool(body.stream), ("b64_json",)))

    async def generate_as_openai(self, body: Annotated[dict[str, Any], Body()], request: Request) -> Response:
        """Makes images of a class, or of one class each; compatible with OpenAI's clients."""
        fields, ignored = relax(body)
        asked = checked(schemas.OpenAIImageRequest, fields)
        backend = self._backend(asked.model)
        info = await _info(backend)
        fitted, changed = fit(asked, info)
        spec = read_spec(fitted, info, self.config.limits)
        warnings = [*ignored, *changed]
        if warnings:
            record_of(request.scope).details["warnings"] = warnings
        forms = BOTH if asked.response_format is None else (asked.response_format,)
        shape = _Shape(bool(asked.stream), forms, warning_header(warnings))
        return await self._make(request, backend, info, spec, shape)

    async def _make(
        self, request: Request, backend: Backend, info: ModelInfo, spec: ImageSpec, shape: _Shape
    ) -> Response:
        record = record_of(request.scope)
        record.details |= {
            "model": info.name,
            "n": len(spec.labels),
            "seed": spec.seed,
            "stream": shape.stream,
        }
        # One generator for limiter, backend and their ends, so that closing it undoes all of it.
        messages = self._limited(record, backend.generate(spec), spec.seconds)
        # The first message is awaited before the answer begins: a refusal still has its own status.
        first = await until_gone(request, anext(messages))
        limits = self.limiter.headers(record.owner)
        if isinstance(first, Refused):
            await messages.aclose()
            error = refusal(first, record.request_id)
            error.headers |= limits
            raise error
        assert isinstance(first, Accepted)
        answer = Answer(info, spec, first.sampler, shape.forms)
        record.details |= answer.settled
        if shape.stream:
            return StreamingResponse(
                server_sent_events(answer, messages),
                media_type="text/event-stream",
                headers={"X-Accel-Buffering": "no", **limits, **shape.headers},
            )
        try:
            body = await until_gone(request, answer.collect(messages, record.request_id))
            return Response(
                body.model_dump_json(exclude_unset=True),  # of an image's forms only those asked for are set
                headers={**limits, **shape.headers},
                media_type="application/json",
            )
        finally:
            await messages.aclose()

    async def models(self) -> schemas.ModelList:
        """All models, the default one first."""
        infos = [await _info(backend) for backend in self.backends.values()]
        data = [_model_data(info, self.config.limits) for info in infos]
        return schemas.ModelList(object="list", data=data)

    async def model(self, model: str) -> schemas.ModelData:
        """One model by name or alias."""
        return _model_data(await _info(self._backend(model)), self.config.limits)

    async def labels(
        self,
        q: Annotated[
            str, Query(max_length=100, description="Part of a name, a number or a WordNet id.")
        ] = "",
        model: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> schemas.LabelList:
        """Classes that match, those whose name begins so first."""
        info = await _info(self._backend(model))
        found = _search(info, q.strip().casefold())
        ids = info.labels.wordnet_ids
        data = [
            schemas.LabelData(
                id=number, name=info.labels.names[number], wordnet_id=ids[number] if ids else None
            )
            for number in found[:limit]
        ]
        return schemas.LabelList(object="list", data=data, total=len(found))

    async def health(self) -> schemas.Status:
        """Says that the process answers; needs no key."""
        return schemas.Status(status="ok")

    async def ready(self) -> schemas.Status:
        """503 until every model is loaded."""
        checks = [backend.ready() for backend in self.backends.values()]
        try:
            async with asyncio.timeout(INFO_SECONDS):
                ready = all(await asyncio.gather(*checks))
        except Exception:  # whatever keeps a backend from answering, it would not take a request
            ready = False
        if not ready:
            raise not_ready("a model is not ready")
        return schemas.Status(status="ok")

    def _backend(self, name: str | None) -> Backend:
        if name is None:
            return next(iter(self.backends.values()))
        backend = self.backends.get(self.aliases.get(name, name))
        if backend is None:
            known = ", ".join([*self.backends, *self.aliases])
            raise ApiError(
                404, f"there is no such model; there are: {known}", param="model", code="model_not_found"
            )
        return backend

    async def _limited(
        self, record: RequestRecord, messages: AsyncIterator[Message], seconds: float | None
    ) -> AsyncGenerator[Message]:
        """The messages, within the key's limits and the deadline, noted in the record."""
        started = time.perf_counter()
        latest = None if seconds is None else started + seconds + GRACE_SECONDS
        with self.limiter.enter(record.owner, record.request_id):
            async with aclosing(until_late(messages, latest)) as open_messages:
                async for message in open_messages:
                    if isinstance(message, Partial | Complete):
                        record.details.setdefault("first_image_s", round(time.perf_counter() - started, 4))
                    elif isinstance(message, Ended):
                        record.details["queued_s"] = round(message.queued_seconds, 4)
                        record.details["engine_s"] = round(message.seconds, 4)
                    elif isinstance(message, Refused):
                        record.details["error"] = message.reason
                    yield message


async def _info(backend: Backend) -> ModelInfo:
    try:
        async with asyncio.timeout(INFO_SECONDS):
            return await backend.info()
    except TimeoutError:
        raise not_ready("the model is being loaded; try again") from None


def _model_data(info: ModelInfo, limits: LimitsConfig) -> schemas.ModelData:
    return schemas.ModelData(
        id=info.name,
        object="model",
        created=info.created,
        owned_by="ray-dit",
        size=size(info),
        num_classes=len(info.labels),
        num_inference_steps=info.sampler.num_steps,
        guidance_scale=info.sampler.guidance_scale if info.guidable else 1.0,
        guidable=info.guidable,
        sampler=info.sampler.name,
        max_images=limits.max_images,
        max_inference_steps=limits.max_inference_steps,
        max_total_steps=limits.max_total_steps,
        max_partial_images=limits.max_partial_images,
    )


def _search(info: ModelInfo, q: str) -> list[int]:
    """Numbers of the classes that match, best first: the whole name, its beginning, a synonym's, any part."""
    names, ids = info.labels.names, info.labels.wordnet_ids
    ranked: list[tuple[int, int]] = []
    for number, name in enumerate(names):
        folded = name.casefold()
        if q in (str(number), folded) or (ids and q == ids[number]):
            ranked.append((0, number))
        elif folded.startswith(q):
            ranked.append((1, number))
        elif any(part.strip().startswith(q) for part in folded.split(",")):
            ranked.append((2, number))
        elif q in folded:
            ranked.append((3, number))
    return [number for _, number in sorted(ranked)]
