"""A job's plain objects, which have no facts: README, plan, copies of the VAE, checkpoints, sample grids.

Each has a marker under ``_plain/``, by which the job's end lists it whoever wrote it and whenever. Knows
nothing of what they hold.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ray_dit.errors import Conflict, Damaged, NotFound
from ray_dit.ledger.manifest import generation_tag, job_key
from ray_dit.ledger.markers import mark, put_marker, read_marker, unless_damaged
from ray_dit.ledger.restore import hash_of, overwrite, put_back, read_whole
from ray_dit.ledger.results import Facts, Marker
from ray_dit.ledger.stored_json import canonical, sealed
from ray_dit.ledger.writers import Writers
from ray_dit.storage.store import Store

FIRST = "_runs/first/"
"""Where writers note what they are about to store, of which the first counts."""
_log = logging.getLogger(__name__)

MadeAgain = Mapping[str, Callable[[], bytes]]
"""How plain objects are made again, by key."""


@dataclass(frozen=True)
class Plain:
    """The plain objects of one generation."""

    store: Store
    generation: int
    writers: Writers
    accepted: str | None = None
    repairing: bool = False
    """As ``accepted``, see ``Job``."""

    def put(self, key: str, data: bytes, *, computed: bool = False) -> None:
        """Stores an object, then its marker; see ``Job.put_plain``."""
        marker = mark(key, key, data, Facts(), fingerprint=self.accepted)
        first = self.writers.record(key, marker.sha256) if computed else True
        try:
            self.store.put(key, data)
        except Conflict as conflict:
            there = self.store.sha256(key)
            if computed and not self.repairing:
                self.writers.check(key, there, first=first, conflict=conflict)
            known = self._marker(key)
            if known is None and computed:  # another kind of machine was first
                return self._adopt(key)
            if known is not None and known.sha256 == there:
                return None
            if known is None:
                # Of a writer that died before its marker, or of the generation before. The marker is first:
                # by it `verify`, and whoever finished that generation, know that the object is replaced.
                put_marker(self.store, self.place(key), marker)
            if self._is_replaced(key):
                return None
            if known is not None and not self._is_of_before(key, there):
                _log.warning("%s is damaged; it is made again", self.store.where(key))
            put_back(self.store, key, data, known.sha256 if known else marker.sha256)
            return None
        return put_marker(self.store, self.place(key), marker)

    def put_first(self, key: str, data: bytes) -> bytes:
        """Stores an object of which the first writer's bytes count, whichever they are; returns those.

        Each writer notes their hash before it stores them, so that bytes whose writer was killed before the
        marker are known, and get one; others ours replace. UserError where what has a marker is damaged and
        ours differ.
        """
        known = self._marker(key)
        if known is not None:
            there = self.first(key)
            if there is not None:
                return there
            _log.warning("%s is missing or damaged; it is made again", self.store.where(key))
            put_back(self.store, key, data, known.sha256)
            return data
        note = {"sha256": hashlib.sha256(data).hexdigest()}
        self.store.put(self._note(key, data), canonical(sealed(note)))
        try:
            self.store.put(key, data)
        except Conflict:
            there = self.first(key)
            if there is None:
                overwrite(self.store, key, data)
            else:
                data = there
        try:
            put_marker(self.store, self.place(key), mark(key, key, data, Facts(), fingerprint=self.accepted))
        except Conflict:  # another writer was first
            return self.get(key)
        return data

    def first(self, key: str) -> bytes | None:
        """What ``put_first`` has stored; None where it is missing or damaged by its marker or its note."""
        try:
            data = self.get(key)
        except (NotFound, Damaged):
            return None
        vouched = self._marker(key) is not None or self.store.head(self._note(key, data)) is not None
        return data if vouched else None

    def _note(self, key: str, data: bytes) -> str:
        return f"{FIRST}{key}/{hashlib.sha256(data).hexdigest()}.json"

    def get(self, key: str) -> bytes:
        """An object's bytes; Damaged unless it is what its marker says, where it has one."""
        marker = self._marker(key)
        return self.store.get(key) if marker is None else read_whole(self.store, key, marker.sha256)

    def sha256(self, key: str) -> str | None:
        """What an object must hold by its marker; None where that is not there, or damaged."""
        marker = self._marker(key)
        return None if marker is None else marker.sha256

    def drop(self, key: str) -> None:
        """Deletes an object that is no longer wanted, its marker first: what is listed must be there."""
        self.store.delete(self.place(key))
        self.store.delete(key)

    def adopt(self, prefix: str) -> None:
        """Gives markers to the objects under ``prefix`` that an earlier version wrote without."""
        for info in self.store.list(prefix):
            if self.store.head(self.place(info.key)) is None:
                self._adopt(info.key)

    def markers(self) -> Iterator[Marker[Facts]]:
        """Their markers, sorted by key; one that is damaged is made again of what is there."""
        for place in sorted(info.key for info in self.store.list(self.folder)):
            key = place.removeprefix(self.folder).removesuffix(".json")
            marker = self._marker(key)
            if marker is None and self.store.head(key) is not None:
                self._adopt(key)
                marker = self._marker(key)
            if marker is not None:
                yield marker

    def restore(self, objects: Iterable[Marker[Facts]], made_again: MadeAgain) -> Iterator[str]:
        """Puts back those of the ``objects`` that are missing or damaged; yields their keys.

        What ``made_again`` lacks is left alone. UserError where other bytes come out.
        """
        for marker in objects:
            make = made_again.get(marker.key)
            if make is None or hash_of(self.store, marker.key) == marker.sha256:
                continue
            if not self._is_replaced(marker.key):
                put_back(self.store, marker.key, make(), marker.sha256)
                yield marker.key

    def remake(self, made_again: MadeAgain) -> Iterator[str]:
        """Makes the objects again whose markers are damaged, and those; yields their keys.

        Nothing is left then that says what was there, so that what is there may not be taken for it.
        """
        for key, make in made_again.items():
            place = self.place(key)
            if self.store.head(place) is not None and self._marker(key) is None:
                data = make()
                marker = mark(key, key, data, Facts(), fingerprint=self.accepted)
                if not self._is_replaced(key):
                    put_back(self.store, key, data, marker.sha256)
                put_marker(self.store, place, marker)
                yield key

    def _is_replaced(self, key: str) -> bool:
        """Whether a later generation has, or is about to have, an object of its own at this key."""
        later = self.generation + 1
        while self.store.head(job_key(later)) is not None:
            if self.store.head(replace(self, generation=later).place(key)) is not None:
                return True
            later += 1
        return False

    def _is_of_before(self, key: str, sha256: str) -> bool:
        """Whether these are the bytes of the generation before, which are to be replaced."""
        before = replace(self, generation=self.generation - 1)._marker(key) if self.generation else None
        return before is not None and before.sha256 == sha256

    def _adopt(self, key: str) -> None:
        """Writes a marker of what is there."""
        info, sha256 = self.store.head(key), self.store.sha256(key)
        size = info.size if info else 0
        marker = Marker(key=key, bytes=size, sha256=sha256, name=key, facts=Facts())
        put_marker(self.store, self.place(key), marker)

    def _marker(self, key: str) -> Marker[Facts] | None:
        return unless_damaged(lambda: read_marker(self.store, self.place(key), Facts))

    @property
    def folder(self) -> str:
        """Where their markers lie, with a slash at the end."""
        return f"_plain{generation_tag(self.generation)}/"

    def place(self, key: str) -> str:
        """Where the marker of an object lies."""
        return f"{self.folder}{key}.json"
