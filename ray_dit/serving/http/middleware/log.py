"""One line of JSON per request on the logger ``ray_dit.serving.requests``, and a word to metrics."""

import asyncio
import json
import logging
import time
from collections.abc import Sequence

from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_dit.serving.http.middleware.client_address import Network, client_address
from ray_dit.serving.http.middleware.request_id import choose_request_id
from ray_dit.serving.http.record import CLIENT_GONE, Observe, RequestRecord, open_record

request_logger = logging.getLogger("ray_dit.serving.requests")


class LogRequests:
    """Opens the request's record, and writes it when the request has ended, however it did."""

    def __init__(
        self, app: ASGIApp, *, observe: Observe | None = None, trusted: Sequence[Network] = ()
    ) -> None:
        self.app, self._observe, self._trusted = app, observe, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = open_record(scope, choose_request_id(scope))
        started = time.perf_counter()

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except asyncio.CancelledError:
            record.status = record.status or CLIENT_GONE
            raise
        finally:
            seconds = time.perf_counter() - started
            _write(scope, record, client_address(scope, self._trusted), seconds)
            if self._observe is not None:
                self._observe(_route(scope), record.status or 0, seconds)


def _route(scope: Scope) -> str:
    """The route's path, not the request's: clients may not make up names of metrics.

    What was refused before it came to its route is looked up, so that it counts there too.
    """
    if "route" in scope:
        return scope["route"].path
    partial = "none"
    for route in scope["app"].routes:
        match, _ = route.matches(scope)
        if match == Match.FULL:
            return route.path
        if match == Match.PARTIAL:  # a method that the route does not take
            partial = route.path
    return partial


def _write(scope: Scope, record: RequestRecord, client: str | None, seconds: float) -> None:
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": record.request_id,
        "client": client,
        "key": record.owner,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": record.status,
        "seconds": round(seconds, 4),
        **record.details,
    }
    request_logger.info(json.dumps(line))
