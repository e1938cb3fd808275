"""Markers as objects of a store: made, read, written over damaged ones; knows no job."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ray_dit.errors import Conflict, Damaged, NotFound
from ray_dit.ledger.restore import overwrite
from ray_dit.ledger.results import F, Facts, Marker, parse_marker
from ray_dit.ledger.stored_json import canonical, parse_json, read_json
from ray_dit.storage.store import Store, checked_key

T = TypeVar("T")


def in_order(name: str) -> tuple[bool, int, str]:
    """Sorts names of objects: numbers by their value, as 99999 comes before 100000, then words by letter."""
    is_number = name.isascii() and name.isdigit()
    return not is_number, int(name) if is_number else 0, name


def mark(
    name: str,
    key: str,
    data: bytes,
    facts: F,
    *,
    fingerprint: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Marker[F]:
    """The marker of an object with these bytes, and of the ``files`` it lists.

    ``fingerprint``: its maker's, if that is an accepted one.
    """
    more: dict[str, Any] = {"fingerprint": fingerprint} if fingerprint else {}
    more |= {"files": len(files)} if files else {}
    sha256 = hashlib.sha256(data).hexdigest()
    size = len(data) + sum(map(len, files.values())) if files else len(data)
    return Marker(key=key, bytes=size, sha256=sha256, name=name, facts=facts, **more)


def listed_files(data: bytes, where: str) -> dict[str, str]:
    """sha256 by key of the objects that an object lists; Damaged where it lists none."""
    document = parse_json(data, where)
    try:
        return {checked_key(file["key"]): str(file["sha256"]) for file in document["files"]}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Damaged(f"{where} lists no files: restore it, or make it again") from error


def marker_at(store: Store, place: str, facts: type[F]) -> Marker[F]:
    """The marker at ``place``; NotFound, Damaged."""
    return parse_marker(read_json(store, place), facts, store.where(place))


def read_marker(store: Store, place: str, facts: type[F]) -> Marker[F] | None:
    """The marker at ``place``, None where there is none; Damaged."""
    try:
        return marker_at(store, place, facts)
    except NotFound:
        return None


def put_marker(store: Store, place: str, marker: Marker[Any]) -> None:
    """Writes a marker, over a damaged one too; Conflict if there is a whole one of another object."""
    data = canonical(marker.to_json())
    try:
        store.put(place, data)
    except Conflict:
        there = unless_damaged(lambda: read_marker(store, place, Facts))
        if there is None:
            overwrite(store, place, data)
        elif (there.key, there.sha256) != (marker.key, marker.sha256):
            raise


def unless_damaged(read: Callable[[], T | None]) -> T | None:
    """What ``read`` finds; None too where that is damaged, for whoever has better bytes to replace it."""
    try:
        return read()
    except Damaged:
        return None
