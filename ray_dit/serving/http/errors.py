"""Errors as answers, in the shape OpenAI's clients read. They carry neither tracebacks nor paths."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Send

from ray_dit.serving.backend import Refused
from ray_dit.serving.http.schemas import ErrorBody, ErrorDetail

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
REFUSED_STATUS = {
    "invalid": 400,
    "queue_full": 429,
    "deadline": 504,
    "cancelled": 503,
    "closed": 503,
    "internal": 500,
    "lost": 503,
}

M = TypeVar("M", bound=BaseModel)
NO_OBJECT = "the body must be a JSON object"
WORDS = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "dict_type": NO_OBJECT,
    "model_type": NO_OBJECT,
    "model_attributes_type": NO_OBJECT,
}
"""What pydantic says in Python's terms, in HTTP's."""

MIN_RETRY, MAX_RETRY = 1.0, 120.0
"""Seconds."""


class ClientGone(Exception):
    """The client closed the connection."""


class ApiError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def json(self) -> str:
        """The body, an ErrorBody."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        detail = ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code)
        # ASCII only: a client's half of a surrogate pair could not be written otherwise.
        return json.dumps(ErrorBody(error=detail).model_dump(), ensure_ascii=True)


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """400 for one parameter of the body."""
    return ApiError(400, message, param=param, code=code)


def nothing_there() -> ApiError:
    """404 for an address."""
    return ApiError(404, "there is nothing at this address", code="not_found")


def too_many(message: str, code: str, retry_after: float, request_id: str) -> ApiError:
    """429 with the time after which to come again."""
    return ApiError(429, message, code=code, headers=retry_headers(retry_after, request_id))


def retry_headers(seconds: float, request_id: str) -> dict[str, str]:
    """When to come again: after these seconds, at least 1, or up to twice as many (at least 2 more).

    Where in that window is a function of the request's id: of many who are refused at once not all come
    back at once. OpenAI's clients read the milliseconds, and give up beyond two minutes.
    """
    part = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:4], "big") / 2**32
    least = max(seconds, MIN_RETRY)
    chosen = min(least + part * max(least, 2.0), MAX_RETRY)
    return {"Retry-After": str(math.ceil(chosen)), "retry-after-ms": str(math.ceil(1000 * chosen))}


def not_ready(message: str) -> ApiError:
    """503 for what is being loaded."""
    return ApiError(503, message, code="not_ready", headers={"Retry-After": "2"})


def refusal(refused: Refused, request_id: str = "") -> ApiError:
    """A backend's refusal."""
    status = REFUSED_STATUS[refused.reason]
    if status == 429:
        return too_many(refused.message, refused.reason, refused.retry_after or MIN_RETRY, request_id)
    # A request that took all its time would take it again: clients should not try on their own.
    headers = {"x-should-retry": "false"} if refused.reason == "deadline" else {}
    if status == 503:
        headers |= retry_headers(refused.retry_after or MIN_RETRY, request_id)
    return ApiError(status, refused.message, code=refused.reason, headers=headers)


async def send_error(error: ApiError, send: Send) -> None:
    """Answers with this error, where there is no framework to do it."""
    body = error.json().encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def add_error_handlers(app: FastAPI) -> None:
    """Every error of the framework, and of the routes, in our shape."""

    async def api_error(_: Request, error: Any) -> Response:
        return Response(error.json(), error.status, headers=error.headers, media_type="application/json")

    async def http_error(request: Request, error: Any) -> Response:
        what = {404: "there is nothing at this address", 405: "this address does not take that method"}
        message = what.get(error.status_code, "the request can't be answered")
        return await api_error(request, ApiError(error.status_code, message, headers=error.headers))

    async def wrong_input(request: Request, error: Any) -> Response:
        if error.errors()[0]["type"].startswith("json"):
            return await api_error(request, ApiError(400, "the body is not valid JSON", code="invalid_json"))
        return await api_error(request, _wrong_input(error.errors()))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, wrong_input)


def checked(model: type[M], fields: Mapping[str, Any]) -> M:
    """The fields of a body as this model; RequestValidationError, answered as 400, where they are wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        wrong = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(wrong) from None


def _wrong_input(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first place at which the input is wrong, and all that is said of it: a value may have two forms."""
    where = _place(errors[0]["loc"])
    said = dict.fromkeys(
        str(WORDS.get(error["type"], error["msg"])) for error in errors if _place(error["loc"]) == where
    )
    return invalid(where or "body", f"{where or 'body'}: {', or: '.join(said)}")


def _place(loc: Sequence[str | int]) -> str:
    """The field, and its place in a list: what comes after is pydantic's own name for a form of the value."""
    name = str(loc[1])[:100] if len(loc) > 1 else ""
    return f"{name}.{loc[2]}" if len(loc) > 2 and isinstance(loc[2], int) else name
