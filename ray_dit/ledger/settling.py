"""An object and what it lists, stored with their marker; and what becomes of them where others made them too.

Knows no job: where a marker lies and how long to wait for another writer's is told.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from ray_dit.errors import Conflict
from ray_dit.ledger.markers import put_marker, read_marker
from ray_dit.ledger.restore import get_or_none, put_back, put_file_back
from ray_dit.ledger.results import F, Marker
from ray_dit.ledger.writers import Writers
from ray_dit.storage.store import Store, ahead


@dataclass(frozen=True)
class Objects(Generic[F]):
    """What one marker stands for."""

    store: Store
    place: str
    """Where the marker lies."""
    marker: Marker[F]
    data: bytes
    """Of the object at the marker's key."""
    files: Mapping[str, bytes]
    """Those it lists, by key."""

    def put(self) -> None:
        """Stores files, object and marker; Conflict where something else is at one of their keys."""
        for _ in ahead(lambda file: self.store.put(*file), self.files.items()):
            pass
        self.store.put(self.marker.key, self.data)
        put_marker(self.store, self.place, self.marker)

    def put_back(self, sha256: str) -> None:
        """Puts back those that are missing or other ones; UserError for another hash of the object."""
        put_back(self.store, self.marker.key, self.data, sha256)
        for _ in ahead(lambda file: put_file_back(self.store, *file), self.files.items()):
            pass

    def settle(self, writers: Writers, *, first: bool, conflict: Conflict, patience: float) -> Marker[F]:
        """The marker that holds where ``put`` met a ``conflict``: the first writer's objects stay.

        HashAlarm unless another kind of machine made them. ``first``: see ``Writers.check``; ``patience``:
        seconds to wait for the other writer's marker.
        """
        key = self.marker.key
        there = get_or_none(self.store, key)
        if there is not None:
            sha256 = hashlib.sha256(there).hexdigest()
            writers.check(key, sha256, first=first, conflict=conflict)
        theirs = self._await_marker(patience)
        if theirs is not None:
            return theirs
        # Its writer died between object and marker: nobody can vouch for that object, so ours takes its
        # place.
        self.put_back(self.marker.sha256)
        try:
            put_marker(self.store, self.place, self.marker)
        except Conflict as late:  # it was not dead: it has written its marker after all
            return self._yield_to(there, late)
        return self.marker

    def _yield_to(self, there: bytes | None, late: Conflict) -> Marker[F]:
        """Puts back what ours has replaced, as its writer's marker came first; files are not kept."""
        theirs = self._marker()
        is_theirs = theirs and there is not None and hashlib.sha256(there).hexdigest() == theirs.sha256
        if theirs is None or there is None or not is_theirs or self.files:
            raise Conflict(
                f"{self.store.where(self.marker.key)} was made in two ways at the same moment: run its stage "
                "again with --repair"
            ) from late
        put_back(self.store, theirs.key, there, theirs.sha256)
        return theirs

    def _marker(self) -> Marker[F] | None:
        return read_marker(self.store, self.place, type(self.marker.facts))

    def _await_marker(self, patience: float) -> Marker[F] | None:
        end = time.monotonic() + patience
        while (marker := self._marker()) is None and time.monotonic() < end:
            time.sleep(0.2)
        return marker
