"""JSON as the ledger stores it: one text per value, so that equal values are equal bytes."""

import json
from typing import Any, cast

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
        return _parsed(data)
    except ValueError as error:
        raise UserError(
            f"{store.where(key)} is damaged: it is no JSON object; delete it and run its stage again"
        ) from error


def parse_line(line: bytes, where: str) -> Json:
    """The object in one line of many; UserError, naming ``where`` it is stored, if it is none."""
    try:
        return _parsed(line)
    except ValueError as error:
        raise UserError(
            f"{where} is damaged: a line is no JSON object; restore it, or delete the manifest and run again"
        ) from error


def _parsed(text: bytes) -> Json:
    try:
        value = json.loads(text)
        canonical(value)  # what can be read and not be written again has no hash
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("no object")
    return cast("dict[str, Json]", value)
