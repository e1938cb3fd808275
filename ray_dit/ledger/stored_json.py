"""JSON as the ledger stores it: one text per value, so that equal values are equal bytes.

A value that others rely on carries a *seal*, the hash of the rest of it, so that a change of any byte shows
wherever it is read.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from ray_dit.errors import Damaged, NotFound
from ray_dit.storage.store import Store

Json = Any

SEAL = "seal"
"""The field that holds the hash of the others."""
_HASH = "sha256:"
"""What a seal begins with, so that one whose name was changed is known too."""

_RAISE = object()


def canonical(value: Json) -> bytes:
    """JSON as it is stored: sorted keys, indented by one, a newline at the end; one text per value."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def json_line(value: Json) -> bytes:
    """As ``canonical``, on one line of a file of many."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def seal_of(value: Mapping[str, Json]) -> str:
    """Hash of a value without its seal."""
    rest = {name: field for name, field in value.items() if name != SEAL}
    return _HASH + hashlib.sha256(canonical(rest)).hexdigest()


def sealed(value: Mapping[str, Json]) -> dict[str, Json]:
    """The value with its seal."""
    return {**value, SEAL: seal_of(value)}


def parse_json(data: bytes, where: str) -> dict[str, Json]:
    """A stored object of JSON.

    Damaged, naming ``where`` it is stored, if it is none or its seal is not its own. What an earlier version
    wrote has no seal.
    """
    try:
        value = json.loads(data)
        canonical(value)  # what can be read and not be written again has no hash
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is damaged: it is no JSON; {ADVICE}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{where} is damaged: it is no JSON object; {ADVICE}")
    stored = cast("dict[str, Json]", value)
    named = {name for name, field in stored.items() if isinstance(field, str) and field.startswith(_HASH)}
    seals = named | (stored.keys() & {SEAL})
    if seals and (seals != {SEAL} or stored[SEAL] != seal_of(stored)):
        raise Damaged(f"{where} is damaged: it does not have its own hash; {ADVICE}")
    return stored


ADVICE = "run its stage again (encode and generate with --repair), or restore it from a copy"


def read_json(store: Store, key: str, *, absent: Json = _RAISE) -> Json:
    """A stored JSON object; ``absent`` where there is none, or NotFound without it; Damaged."""
    try:
        data = store.get(key)
    except NotFound:
        if absent is _RAISE:
            raise
        return absent
    return parse_json(data, store.where(key))
