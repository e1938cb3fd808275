"""JSON as the ledger stores it: one text per value, so that equal values are equal bytes."""

import json
from typing import Any

from ray_dit.errors import NotFound, UserError
from ray_dit.storage.store import Store

Json = Any

_RAISE = object()


def canonical(value: Json) -> bytes:
    """JSON as it is stored: sorted keys, indented by one, a newline at the end; one text per value."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def json_line(value: Json) -> bytes:
    """As ``canonical``, on one line of a file of many."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def read_json(store: Store, key: str, *, absent: Json = _RAISE) -> Json:
    """A stored JSON value; ``absent`` where there is none, or NotFound without it."""
    try:
        data = store.get(key)
    except NotFound:
        if absent is _RAISE:
            raise
        return absent
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(
            f"{store.where(key)} is damaged: it is no JSON; delete it and run its stage again"
        ) from error
