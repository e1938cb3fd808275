"""HEAD wherever GET is: the same answer without its body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AnswerHead:
    """Asks what is behind it for GET, and keeps the body back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_bare(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        # A copy, because the server itself looks at the method of its own; the log reads the route there.
        asked = {**scope, "method": "GET"}
        try:
            await self.app(asked, receive, send_bare)
        finally:
            if "route" in asked:
                scope["route"] = asked["route"]
