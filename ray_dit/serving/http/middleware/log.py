"""One line of JSON per request on the logger ``ray_dit.serving.requests``, and a word to metrics."""

import asyncio
import json
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_dit.serving.http.middleware.request_id import choose_request_id
from ray_dit.serving.http.record import CLIENT_GONE, Observe, RequestRecord, open_record

request_logger = logging.getLogger("ray_dit.serving.requests")


class LogRequests:
    """Opens the request's record, and writes it when the request has ended, however it did."""

    def __init__(self, app: ASGIApp, *, observe: Observe | None = None) -> None:
        self.app, self._observe = app, observe

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
            _write(scope, record, seconds)
            if self._observe is not None:
                # The route, not the path: clients may not make up names of metrics.
                self._observe(getattr(scope.get("route"), "path", "none"), record.status or 0, seconds)


def _write(scope: Scope, record: RequestRecord, seconds: float) -> None:
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": record.request_id,
        "key": record.owner,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": record.status,
        "seconds": round(seconds, 4),
        **record.details,
    }
    request_logger.info(json.dumps(line))
