"""Who asks: an API key on every route but those that are open to all, where there are keys at all.

It looks at ``scope["path"]`` exactly as the router will, and denies by default.
"""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_dit.serving.http.errors import ApiError
from ray_dit.serving.http.keys import Keys
from ray_dit.serving.http.middleware.scope import headers_of, route_path
from ray_dit.serving.http.record import record_of

ASK = 'Basic realm="ray-dit (any name; the API key as password)", Bearer'
"""Basic comes first, so that browsers ask for the key themselves."""


class CheckKey:
    """401 without a valid key; with one the record learns whose it is."""

    def __init__(self, app: ASGIApp, *, keys: Keys, open_paths: Collection[str]) -> None:
        self.app, self._keys, self._open_paths = app, keys, frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys.wanted and route_path(scope) not in self._open_paths:
            given = headers_of(scope).get(b"authorization", [])
            owner = self._keys.owner(given[0].decode("latin-1")) if len(given) == 1 else None
            if owner is None:
                raise ApiError(
                    401,
                    "give a valid API key as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": ASK},
                )
            record_of(scope).owner = owner
        await self.app(scope, receive, send)
