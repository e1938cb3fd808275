"""Nothing but HTTP: there are no websockets here."""

from starlette.types import ASGIApp, Receive, Scope, Send


class OnlyHttp:
    """Closes every connection that is not HTTP's; the server's own start and stop pass."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "lifespan"):
            await self.app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})
