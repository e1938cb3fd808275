"""Only host names this server goes by: against pages whose own name resolves here (DNS rebinding)."""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_dit.serving.http.errors import ApiError
from ray_dit.serving.http.middleware.scope import headers_of

HOST = re.compile(rb"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+))(?::[0-9]{1,5})?")


class CheckHost:
    """400 unless the Host header, without its port, is among the allowed names; * allows any."""

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        self.app, self._allowed = app, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._allowed:
            hosts = headers_of(scope).get(b"host", [])
            name = _name(hosts[0]) if len(hosts) == 1 else None
            if name is None or name not in self._allowed:
                raise ApiError(
                    400,
                    "this server does not answer to that host name (see allowed_hosts)",
                    code="invalid_host",
                )
        await self.app(scope, receive, send)


def _name(host: bytes) -> str | None:
    match = HOST.fullmatch(host)
    return (match[1] or match[2]).decode().lower() if match else None
