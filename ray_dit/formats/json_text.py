"""JSON from elsewhere: one kind of error, whatever is wrong with the text; knows no document."""

import json
from typing import Any, cast

DEEPEST = 100
"""Levels of lists and objects in each other; nothing that is meant has a tenth of them."""


def parse_json(text: bytes | str) -> Any:
    """The value; ValueError for what is no JSON, and for nesting that would exhaust a reader's stack."""
    try:
        value: Any = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []
