"""Hypothesis strategies for damaged bytes: what a disk, a network or an enemy makes of good ones.

Knows no format.
"""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Json = Any
ODD: list[Json] = [
    None, True, -1, 0, 10**30, -(10**4000), 1e308, float("nan"), float("inf"), "", "\ud800", "a" * 5000,
    [], {}, [[]], {"": None}, "../../etc/passwd", 2**63, 0.5, "1",
]  # fmt: skip
"""Values where something else is wanted."""


def nested(depth: int) -> Json:
    """A list in a list, so many times."""
    value: Json = []
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def damaged(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of ``originals`` after up to eight flips, cuts, repetitions, overwritten numbers."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.one_of(st.integers(0, 16), st.integers(0, len(data))))
        match draw(st.integers(0, 5)):
            case 0 if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del data[start:]
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = draw(st.binary(max_size=16))
            case 4:
                number = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
                order = draw(st.sampled_from(["little", "big"]))
                size = 4 if number < 2**32 else 8
                data[start : start + size] = number.to_bytes(size, order)
            case _:
                data[start:start] = data[start : start + length]
    return bytes(data)


@st.composite
def odd_json(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """A JSON document with a few of its values replaced, removed or of another type; or damaged as bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(originals))
    document = json.loads(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        document = _changed(draw, document)
    return json.dumps(document).encode()


def _changed(draw: st.DrawFn, value: Json) -> Json:
    inside: list[Any] = []
    if isinstance(value, dict | list):
        inside = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not inside or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from([*ODD, nested(50)]))
    key = draw(st.sampled_from(inside))
    changed = value.copy()
    if draw(st.integers(0, 4)) == 0:
        del changed[key]
    else:
        changed[key] = _changed(draw, value[key])
    return changed
