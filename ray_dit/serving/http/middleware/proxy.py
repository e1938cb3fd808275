"""What stands before Ray Serve's proxy, which answers some requests before the API sees them.

Knows no Ray itself, only how its proxy speaks for itself (ray 2.60, `serve/_private/http_util.py`). Ray Serve
finds `proxy_middlewares` by the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_dit.serving.http.errors import ApiError, nothing_there, retry_headers, send_error
from ray_dit.serving.http.middleware.request_id import choose_request_id, is_request_id
from ray_dit.serving.http.middleware.security_headers import SECURITY_HEADERS

OWN_TYPE = b"text/plain; charset=utf-8"
NO_ROUTE = b"Ping http://.../-/routes"
"""What the proxy's 404 ends in, where no application takes the address."""
OWN_ERRORS = {
    408: ("the request took longer than it was to take at most", "timeout"),
    429: ("too many requests are waiting; try again later", "queue_full"),
    503: ("the server can't take the request now; try again", "not_ready"),
}
"""What the proxy refuses in text, in our words."""
ABSENT = "nothing is served here now: the server is starting, stopping or replacing a part; try again"


class ProxyGuard:
    """Lets the proxy answer as the API does, hides its list of applications, and takes bad request ids away.

    The proxy would tell anyone the list. It would echo such an id, or break on it, when it is no UTF-8;
    without one it gives one of its own. What it says in text while the application starts, stops or has lost
    its API becomes JSON; answers of applications pass as they are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].rstrip("/") == "/-/routes":
            await send_error(nothing_there(), send)
            return
        request_id = choose_request_id(scope)
        kept = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower() != b"x-request-id" or is_request_id(value)
        ]
        if scope["path"].startswith("/-/"):  # for load balancers, in the proxy's own words
            await self.app({**scope, "headers": kept}, receive, send)
            return
        answer = _Answer(send, request_id)
        try:
            await self.app({**scope, "headers": kept}, receive, answer.send)
        finally:
            await answer.end()


class _Answer:
    """One answer on its way from the proxy to the client."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self._held: Message | None = None
        """The start of what may be the proxy's own error, until its body tells."""
        self._started = False

    async def send(self, message: Message) -> None:
        if self._held is not None:
            start, self._held = self._held, None
            if start["status"] != 404 or NO_ROUTE in message.get("body", b""):
                await self._refuse(start["status"])
                return
            await self._send(start)
        elif not self._started and _may_be_own(message):
            self._held, self._started = message, True
            return
        self._started = True
        await self._send(message)

    async def end(self) -> None:
        """A proxy whose application died under a request leaves it without any answer."""
        if not self._started:
            self._started = True
            await self._refuse(500)

    async def _refuse(self, status: int) -> None:
        message, code = OWN_ERRORS.get(status, (ABSENT, "not_ready"))
        headers = {name.decode(): value.decode() for name, value in SECURITY_HEADERS.items()}
        if status != 408:
            headers |= retry_headers(2.0, self._request_id)
        error = ApiError(status if status in OWN_ERRORS else 503, message, code=code, headers=headers)
        await send_error(error, self._send)


def _may_be_own(message: Message) -> bool:
    """Whether an answer begins as the proxy's own: in text, of no length; applications' have one."""
    headers = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", [])}
    return (
        message["type"] == "http.response.start"
        and message["status"] in (404, *OWN_ERRORS)
        and headers.get(b"content-type") == OWN_TYPE
        and b"content-length" not in headers
    )


def proxy_middlewares() -> list[Middleware]:
    """What Ray Serve is to put around its proxy."""
    return [Middleware(ProxyGuard)]
