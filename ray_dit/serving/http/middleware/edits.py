"""What OpenAI's images API has and this one can't: changing an image that is sent."""

import asyncio
import contextlib

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_dit.serving.http.errors import ApiError
from ray_dit.serving.http.middleware.body import CLOSE
from ray_dit.serving.http.middleware.scope import route_path

EDITS = frozenset({"/v1/images/edits", "/v1/images/variations"})


class RefuseEdits:
    """404 that says what there is instead; what arrives of the image within ``seconds`` is thrown away."""

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self.app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) in EDITS:
            # A client that is still sending would find the connection closed, and never see the answer.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    while (await receive()).get("more_body", False):
                        pass
            raise ApiError(
                404,
                "this server makes images of classes and changes none: POST /v1/images/generations with the "
                "name of a class as prompt; GET /v1/labels lists them",
                code="not_supported",
                headers=CLOSE,
            )
        await self.app(scope, receive, send)
