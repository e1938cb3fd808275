"""The description of the API at /openapi.json: FastAPI's document, with the errors there are."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ray_dit.serving.http import schemas

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody, "description": text}
    for status, text in {
        400: "Something is wrong with the request.",
        401: "No valid API key.",
        404: "There is no such model.",
        408: "The body came too slowly.",
        413: "The body is too long.",
        415: "The body is not application/json.",
        429: "Too many requests; come again after `Retry-After` seconds.",
        500: "A defect here.",
        503: "Not ready, or shutting down.",
        504: "Not done within the time a request may take.",
    }.items()
}
IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "The images; with `stream`, events.",
    }
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside 200: these, and what any route may."""
    return {status: ERRORS[status] for status in (400, 401, *statuses, 500, 503)}


def describe(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with 400 where it would say 422, and the key."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}, {}]
        document["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema
