"""The id by which a client, the log and every answer name the same request."""

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_dit.serving.http.middleware.scope import headers_of
from ray_dit.serving.http.record import record_of

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def is_request_id(given: bytes) -> bool:
    """Whether it may be echoed and logged as it is."""
    return REQUEST_ID.fullmatch(given) is not None


def choose_request_id(scope: Scope) -> str:
    """The client's X-Request-Id, or a new one where that is missing or none."""
    given = headers_of(scope).get(b"x-request-id", [b""])[0]
    return given.decode() if is_request_id(given) else f"req_{uuid.uuid4().hex}"


class AnswerRequestId:
    """Puts the id of the request's record on its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (b"x-request-id", record_of(scope).request_id.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, send_marked)
