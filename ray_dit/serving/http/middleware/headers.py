"""Headers: bounded in length and number. The proxy in front has read them whole; nothing behind this does."""

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_dit.serving.http.errors import ApiError
from ray_dit.serving.http.middleware.body import CLOSE

MOST = 100
"""Headers of a request: browsers and proxies send some thirty."""


class CheckHeaders:
    """431 for a request whose target and headers are longer than ``most`` bytes, or too many."""

    def __init__(self, app: ASGIApp, *, most: int) -> None:
        self.app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = scope["headers"]
            target = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
            length = target + sum(len(name) + len(value) for name, value in headers)
            if length > self._most or len(headers) > MOST:
                raise ApiError(
                    431,
                    f"target and headers are longer than {self._most} bytes, or more than {MOST} headers",
                    code="headers_too_large",
                    headers=CLOSE,
                )
        await self.app(scope, receive, send)
