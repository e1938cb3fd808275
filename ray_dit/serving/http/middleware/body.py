"""Bodies: bounded in length and in the time they take to arrive, said to be JSON, and not compressed."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_dit.config.serve import LimitsConfig
from ray_dit.serving.http.errors import ApiError, ClientGone
from ray_dit.serving.http.middleware.scope import headers_of

CLOSE = {"Connection": "close"}
"""The rest of a body that was not read would be taken for the next request."""

LOST = (
    "the body was lost: the request asks to change the protocol (Upgrade), which this server does not do; "
    "let the client speak HTTP/1.1 (in Java: HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1))"
)


class ReadBody:
    """Reads the body ahead and hands it on whole. 413, 415 or 408 for one that is not as it should be."""

    def __init__(self, app: ASGIApp, *, limits: LimitsConfig) -> None:
        self.app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = await self._read_ahead(scope, receive)
        await self.app(scope, receive, send)

    async def _read_ahead(self, scope: Scope, receive: Receive) -> Receive:
        headers = headers_of(scope)
        declared = headers.get(b"content-length", [b"0"])[0]
        chunked = b"transfer-encoding" in headers
        if declared == b"0" and not chunked:
            return receive
        most = self._limits.max_body_bytes
        if not declared.isdigit() or int(declared[:20]) > most:
            raise _too_large(most)
        content_type = headers.get(b"content-type", [b""])[0].split(b";")[0].strip().lower()
        if content_type != b"application/json":
            # Also keeps out what a page of another origin may send without asking.
            raise ApiError(415, "send the body as application/json", code="unsupported_media_type")
        if any(value.strip().lower() != b"identity" for value in headers.get(b"content-encoding", [])):
            raise ApiError(415, "send the body as it is, not compressed", code="unsupported_encoding")
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await _read(receive, most)
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise ApiError(408, message, code="body_timeout", headers=CLOSE) from None
        if not body and b"upgrade" in headers:
            # HTTP servers in front of us end such a request with its headers.
            raise ApiError(400, LOST, code="upgrade_not_supported", headers=CLOSE)
        return _replay(body, receive)


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > most:  # whatever length was declared, or none
            raise _too_large(most)
        more = message.get("more_body", False)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives the body first, in one message."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than {most} bytes", code="body_too_large", headers=CLOSE)
