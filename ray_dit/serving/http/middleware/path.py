"""Paths that another program in the chain may read otherwise than we do lead nowhere; no route needs them."""

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_dit.serving.http.errors import nothing_there


class CheckPath:
    """404 for an encoded slash, a backslash, `..` and `//`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _ambiguous(scope):
            raise nothing_there()
        await self.app(scope, receive, send)


def _ambiguous(scope: Scope) -> bool:
    raw = scope.get("raw_path") or b""
    segments = scope["path"].split("/")
    return b"%2f" in raw.lower() or ".." in segments or "" in segments[1:-1] or "\\" in scope["path"]
