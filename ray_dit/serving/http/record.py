"""What the log will say about a request: opened by the log, added to on the way."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

Observe = Callable[[str, int, float], None]
"""Told of every request: its route, status and seconds."""

CLIENT_GONE = 499
"""In logs, as nginx has it: the client went before the answer."""


@dataclass
class RequestRecord:
    """One request as it is logged; routes add to ``details``."""

    request_id: str
    owner: str = "anonymous"
    """Of the API key."""
    status: int | None = None
    """None until the answer begins."""
    details: dict[str, Any] = field(default_factory=dict)


def open_record(scope: Scope, request_id: str) -> RequestRecord:
    """A record for this request; routes find it as ``request.state.record``."""
    record = scope.setdefault("state", {})["record"] = RequestRecord(request_id)
    return record


def record_of(scope: Scope) -> RequestRecord:
    """The record of this request."""
    return scope["state"]["record"]
