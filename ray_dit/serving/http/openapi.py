"""The description of the API at /openapi.json: FastAPI's document, with the errors there are."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from ray_dit.config.serve import ApiConfig
from ray_dit.serving.http import schemas
from ray_dit.serving.http.compatibility import WARNING_HEADER, loosen

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody, "description": text}
    for status, text in {
        400: "Something is wrong with the request.",
        401: "No valid API key.",
        404: "There is no such model.",
        408: "The body came too slowly.",
        413: "The body is too long.",
        415: "The body is not application/json, or is compressed.",
        431: "The headers are too long.",
        429: "Too many requests; come again after `Retry-After` seconds.",
        500: "A defect here.",
        503: "Not ready, or shutting down.",
        504: "Not done within the time a request may take.",
    }.items()
}

EVENTS = (
    "`image_generation.partial_image` with a PartialImageEvent as data, `image_generation.completed` with a "
    "CompletedEvent, or `error` with an ErrorBody; at the end of all images `[DONE]`."
)
RATE_HEADERS = {
    f"x-ratelimit-{what}-requests": {"description": text, "schema": {"type": "string"}}
    for what, text in {
        "limit": "Requests that this key may send at once.",
        "remaining": "How many of them are left now.",
        "reset": "Seconds until all are, such as `1.500s`.",
    }.items()
}


def images(*, warns: bool) -> dict[int | str, dict[str, Any]]:
    """What a request for images is answered with; ``warns``: with a header for what had no effect."""
    told = {
        "description": "What was asked for and had no effect; left out where there is nothing to say.",
        "schema": {"type": "string"},
    }
    headers = {WARNING_HEADER: told} if warns else {}
    return {
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string", "description": EVENTS}}},
            "description": "The images; with `stream`, events.",
            "headers": RATE_HEADERS | headers,
        }
    }


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside 200: these, and what any route may."""
    return {status: ERRORS[status] for status in (400, 401, *statuses, 431, 500, 503)}


def describe(app: FastAPI, config: ApiConfig) -> dict[str, Any]:
    """FastAPI's document with the key, 400 where it would say 422, and bodies as mode and operator allow."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["schemas"] |= _event_schemas()
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}, {}]
        for path in ("/health", *(["/ready"] if config.ready_without_key else [])):
            document["paths"][path]["get"]["security"] = []
        # From pydantic itself: FastAPI makes floats of bounds.
        document["components"]["schemas"]["ImageRequest"] = _request_schema(config)
        body = document["paths"]["/v1/images/generations"]["post"]["requestBody"]
        body["content"]["application/json"]["schema"] = {"$ref": "#/components/schemas/ImageRequest"}
        app.openapi_schema = document
    return app.openapi_schema


def _event_schemas() -> dict[str, Any]:
    """What a stream's events hold, which FastAPI does not know of."""
    _, document = models_json_schema(
        [(schemas.PartialImageEvent, "serialization"), (schemas.CompletedEvent, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    return document["$defs"]


def _request_schema(config: ApiConfig) -> dict[str, Any]:
    """The body of a request for images, within the operator's limits."""
    if config.compatibility == "openai":
        schema = loosen(schemas.OpenAIImageRequest.model_json_schema())
    else:
        schema = schemas.ImageRequest.model_json_schema()
    limits, fields = config.limits, schema["properties"]
    for name, most in (
        ("n", limits.max_images),
        ("num_inference_steps", limits.max_inference_steps),
        ("partial_images", limits.max_partial_images),
    ):
        _form(fields[name], "integer")["maximum"] = most
    _form(fields["class_labels"], "array")["maxItems"] = limits.max_images
    fields["num_inference_steps"]["description"] += (
        f" Images times steps are at most {limits.max_total_steps} per request."
    )
    return schema | {"title": "ImageRequest"}


def _form(field: dict[str, Any], kind: str) -> dict[str, Any]:
    """The form of a field's value that has this type."""
    return next(form for form in field["anyOf"] if form.get("type") == kind)
