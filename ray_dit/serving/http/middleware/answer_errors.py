"""Whatever goes wrong behind it, the client gets an answer in our shape: no traceback, no path."""

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from ray_dit.serving.http.errors import ApiError, ClientGone, send_error
from ray_dit.serving.http.record import CLIENT_GONE, RequestRecord, record_of

logger = logging.getLogger(__name__)


class AnswerErrors:
    """Turns exceptions into answers; what is no `ApiError` is a defect, and logged with its traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = record_of(scope)
        try:
            await self.app(scope, receive, send)
        except ApiError as error:
            await _answer(error, record, send)
        except ClientGone:
            record.status = CLIENT_GONE
        except Exception:
            logger.exception("request %s failed", record.request_id)
            record.details["error"] = "internal"
            message = "something went wrong here; tell the operator the request id"
            await _answer(ApiError(500, message, code="internal"), record, send)


async def _answer(error: ApiError, record: RequestRecord, send: Send) -> None:
    if record.status is not None:
        return  # the answer has begun; it ends here
    record.details.setdefault("error", error.code)
    await send_error(error, send)
