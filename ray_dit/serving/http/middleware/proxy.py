"""What stands before Ray Serve's proxy, which answers some requests before the API sees them.

Knows no Ray itself. Ray Serve finds `proxy_middlewares` by the variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ray_dit.serving.http.errors import nothing_there, send_error
from ray_dit.serving.http.middleware.request_id import is_request_id


class ProxyGuard:
    """Hides the proxy's list of applications, and takes request ids away that are none.

    The proxy would tell anyone the list. It would echo such an id, or break on it, when it is no UTF-8;
    without one it gives one of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"].rstrip("/") == "/-/routes":
                await send_error(nothing_there(), send)
                return
            kept = [
                (name, value)
                for name, value in scope["headers"]
                if name.lower() != b"x-request-id" or is_request_id(value)
            ]
            scope = {**scope, "headers": kept}
        await self.app(scope, receive, send)


def proxy_middlewares() -> list[Middleware]:
    """What Ray Serve is to put around its proxy."""
    return [Middleware(ProxyGuard)]
