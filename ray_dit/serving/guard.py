"""What stands before every route: host, key, body; request ids, errors and the log. Pure ASGI; knows no models.

Authorisation looks at ``scope["path"]`` exactly as the router will, and denies by default: only /health answers without
a key. Answers carry neither tracebacks nor paths.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_dit.config.serve import ApiConfig, LimitsConfig
from ray_dit.serving.keys import Keys

logger = logging.getLogger(__name__)
request_logger = logging.getLogger("ray_dit.serving.requests")

OPEN_PATHS = frozenset({"/health"})
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
CLIENT_GONE = 499
"""In logs, as nginx has it: the client went before the answer."""
SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer other than 200, in the shape OpenAI's clients read."""

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

    def body(self) -> dict[str, Any]:
        """``{"error": ...}``."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def too_many(message: str, code: str, retry_after: float) -> ApiError:
    """429 with the time after which to come again."""
    seconds = max(1, min(120, round(retry_after + 0.5)))
    return ApiError(429, message, code=code, headers={"Retry-After": str(seconds)})


@dataclass
class Call:
    """One request as the log tells it; routes add to ``details``."""

    request_id: str
    owner: str = "anonymous"
    status: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


Observe = Callable[[str, int, float], None]
"""Told of every request: its route, status and seconds."""


class Guard:
    """ASGI middleware; ``own_request_id`` False where a proxy in front already answers with the request's id."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: ApiConfig,
        keys: Keys,
        own_request_id: bool = True,
        observe: Observe | None = None,
    ) -> None:
        self.app, self.config, self.keys = app, config, keys
        self._own_request_id, self._observe = own_request_id, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        call = Call(_request_id(headers))
        scope.setdefault("state", {})["call"] = call
        started = time.perf_counter()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                message = {**message, "headers": self._marked(message.get("headers", []), call)}
            await send(message)

        try:
            self._check_host(headers)
            call.owner = self._owner(scope, headers)
            _check_path(scope)
            body = await self._body(headers, receive)
            await self.app(scope, body, send_marked)
        except ApiError as error:
            await self._refuse(error, call, send_marked)
        except asyncio.CancelledError:
            call.status = call.status or CLIENT_GONE
            raise
        except ClientGone:
            call.status = CLIENT_GONE
        except Exception:
            logger.exception("request %s failed", call.request_id)
            call.details["error"] = "internal"
            error = ApiError(
                500, "something went wrong here; tell the operator the request id", code="internal"
            )
            await self._refuse(error, call, send_marked)
        finally:
            seconds = time.perf_counter() - started
            _log(scope, call, seconds)
            if self._observe is not None:
                # The route, not the path: clients may not make up names of metrics.
                self._observe(getattr(scope.get("route"), "path", "none"), call.status or 0, seconds)

    def _check_host(self, headers: Mapping[bytes, list[bytes]]) -> None:
        if "*" in self.config.allowed_hosts:
            return
        hosts = headers.get(b"host", [])
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or name not in self.config.allowed_hosts:
            raise ApiError(
                400, "this server does not answer to that host name (see allowed_hosts)", code="invalid_host"
            )

    def _owner(self, scope: Scope, headers: Mapping[bytes, list[bytes]]) -> str:
        if not len(self.keys) or route_path(scope) in OPEN_PATHS:
            return "anonymous"
        given = headers.get(b"authorization", [])
        owner = self.keys.owner(given[0].decode("latin-1")) if len(given) == 1 else None
        if owner is None:
            raise ApiError(
                401,
                "give a valid API key as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={
                    "WWW-Authenticate": 'Basic realm="ray-dit (any name; the API key as password)", Bearer'
                },
            )
        return owner

    async def _body(self, headers: Mapping[bytes, list[bytes]], receive: Receive) -> Receive:
        """``receive`` with the body read ahead: bounded in length and time, and said to be JSON."""
        declared = headers.get(b"content-length", [b"0"])[0]
        chunked = b"transfer-encoding" in headers
        if declared == b"0" and not chunked:
            return receive
        most = self.config.limits.max_body_bytes
        if not declared.isdigit() or int(declared[:20]) > most:
            raise _too_large(most)
        content_type = headers.get(b"content-type", [b""])[0].split(b";")[0].strip().lower()
        if content_type != b"application/json":
            # Also keeps out what a page of another origin may send without asking.
            raise ApiError(415, "send the body as application/json", code="unsupported_media_type")
        try:
            async with asyncio.timeout(self.config.limits.body_seconds):
                body = await _read(receive, most)
        except TimeoutError:
            raise ApiError(
                408, "the body did not arrive in time", code="body_timeout", headers={"Connection": "close"}
            ) from None
        return _replay(body, receive)

    def _marked(self, headers: Any, call: Call) -> list[tuple[bytes, bytes]]:
        given = [(bytes(name), bytes(value)) for name, value in headers]
        names = {name.lower() for name, _ in given}
        given += [(name, value) for name, value in SECURITY_HEADERS.items() if name not in names]
        if self._own_request_id:
            given.append((b"x-request-id", call.request_id.encode()))
        return given

    async def _refuse(self, error: ApiError, call: Call, send: Send) -> None:
        if call.status is not None:
            return  # the answer has begun; it ends here
        call.details.setdefault("error", error.code)
        await _send_error(error, send)


class ClientGone(Exception):
    """The client closed the connection."""


class Limiter:
    """Rate and concurrency of image requests by owner of the key: a token bucket each, in this process."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._burst = max(10.0, limits.requests_per_minute / 10)
        self._tokens: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}

    @contextlib.contextmanager
    def enter(self, owner: str) -> Iterator[None]:
        """Inside, the request counts. Raises ApiError 429."""
        running = self._running.get(owner, 0)
        if running >= self._limits.max_concurrent:
            raise too_many(f"{running} requests of this key are running already", "too_many_concurrent", 1)
        self._take_token(owner)
        self._running[owner] = running + 1
        try:
            yield
        finally:
            self._running[owner] -= 1

    def _take_token(self, owner: str) -> None:
        now, rate = time.monotonic(), self._limits.requests_per_minute / 60
        tokens, before = self._tokens.get(owner, (self._burst, now))
        tokens = min(self._burst, tokens + (now - before) * rate)
        if tokens < 1:
            self._tokens[owner] = (tokens, now)
            message = f"more than {self._limits.requests_per_minute} requests a minute with this key"
            raise too_many(message, "rate_limit_exceeded", (1 - tokens) / rate)
        self._tokens[owner] = (tokens - 1, now)


def error_response(error: ApiError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error."""
    # ASCII only: a client's half of a surrogate pair could not be written otherwise.
    body = json.dumps(error.body(), ensure_ascii=True).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    return error.status, headers, body


async def _send_error(error: ApiError, send: Send) -> None:
    status, headers, body = error_response(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _nothing_there() -> ApiError:
    return ApiError(404, "there is nothing at this address", code="not_found")


class ProxyGuard:
    """Around Ray Serve's proxy: hides its list of applications, which it would tell anyone, and takes request ids away
    that are none, which it would echo (or break on, when they are no UTF-8): it then gives one of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"].rstrip("/") == "/-/routes":
                await _send_error(_nothing_there(), send)
                return
            kept = [
                (name, value)
                for name, value in scope["headers"]
                if name.lower() != b"x-request-id" or _is_request_id(value)
            ]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)


def proxy_middlewares() -> list[Middleware]:
    """For Ray Serve's variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(ProxyGuard)]


def route_path(scope: Scope) -> str:
    """The path below the application's mount point, decoded once, as routes see it."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def _headers(scope: Scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def _request_id(headers: Mapping[bytes, list[bytes]]) -> str:
    given = headers.get(b"x-request-id", [b""])[0]
    return given.decode() if _is_request_id(given) else f"req_{uuid.uuid4().hex}"


def _is_request_id(given: bytes) -> bool:
    return REQUEST_ID.fullmatch(given) is not None


def _host_name(host: bytes) -> str | None:
    match = re.fullmatch(rb"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]{1,5})?", host)
    return (match[1] or match[2]).decode().lower() if match else None


def _check_path(scope: Scope) -> None:
    """Refuses paths that another program in the chain may read otherwise than we do; no route needs them."""
    raw = scope.get("raw_path") or b""
    segments = scope["path"].split("/")
    if b"%2f" in raw.lower() or ".." in segments or "" in segments[1:-1] or "\\" in scope["path"]:
        raise _nothing_there()


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the body is longer than {most} bytes", code="body_too_large", headers={"Connection": "close"}
    )


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        more = message.get("more_body", False)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _log(scope: Scope, call: Call, seconds: float) -> None:
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": call.request_id,
        "key": call.owner,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": call.status,
        "seconds": round(seconds, 4),
        **call.details,
    }
    request_logger.info(json.dumps(line))
