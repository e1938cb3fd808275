"""Worker history: which workers trained which steps, and the hash of it that keys hold; knows no store.

The bits of a training are a function of its configuration and this: with other workers, or on another kind of
machine, the same samples in the same order give other last bits.
"""

import hashlib
import json
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Segment(BaseModel):
    """Steps that the same workers trained."""

    model_config = ConfigDict(frozen=True)

    first: int
    """The first of them, counted from 0; the last is the one before the next segment's."""
    workers: int
    """How many took part; idle ones are not counted."""
    kind: str
    """Their kind of machine; where they differ, each one's, in the order of their ranks."""


History = tuple[Segment, ...]
"""Segments, rising. What comes before the first of them was trained by a version that noted none."""


def with_start(history: History, step: int, workers: int, kinds: Sequence[str]) -> History:
    """The history of a start that goes on at ``step``.

    It is the same one where the workers are those of before. ``kinds``: each worker's kind of machine, by
    rank.
    """
    kind = kinds[0] if len(set(kinds)) == 1 else " | ".join(kinds)
    segment = Segment(first=step, workers=workers, kind=kind)
    if history and (history[-1].workers, history[-1].kind) == (workers, kind):
        return history
    return (*history, segment)


def until(history: History, step: int) -> History:
    """The part of it that decides the state after ``step`` steps."""
    return tuple(segment for segment in history if segment.first < step)


def history_hash(history: History) -> str:
    """Eight hex digits; empty where nothing was noted, as in the keys of earlier versions."""
    if not history:
        return ""
    text = json.dumps([[segment.first, segment.workers, segment.kind] for segment in history])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def keyed(key: str, history: History) -> str:
    """A key with the hash ahead of its suffix: ``loss.json`` becomes ``loss-1a2b3c4d.json``."""
    mark = history_hash(history)
    folder, slash, name = key.rpartition("/")
    stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
    return f"{folder}{slash}{stem}-{mark}{dot}{suffix}" if mark else key


def in_words(history: History) -> str:
    """For a message: ``2 workers (KIND) from step 0, 1 worker (KIND) from step 100``."""
    return ", ".join(
        f"{each.workers} worker{'s' if each.workers > 1 else ''} ({each.kind}) from step {each.first}"
        for each in history
    )
