"""Which kind of machine made which bytes of a job, and the alarm where that does not fit together.

Knows nothing of markers, or of what objects hold.

::

    _runs/writers/KIND.json      one per kind of machine that made objects here
    _runs/made/KIND/KEY.json     what that kind made of an object: its sha256, written before the object;
                                 more than one where what it is made of may change or go away

Both say where bytes come from, which may differ between runs of one job, so they lie outside every equality.
A record beside the objects and not in their metadata: it is the same for every kind of storage, and it tells
what a kind made before even where the object was replaced or lost.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ray_dit.errors import Conflict, Damaged, NotFound
from ray_dit.ledger.restore import overwrite
from ray_dit.ledger.runs import machine_kind
from ray_dit.ledger.stored_json import Json, canonical, parse_json, sealed
from ray_dit.storage.store import Store

MADE = "_runs/made/"
WRITERS = "_runs/writers"


TRIES = 20
"""How often a record is read and added to while others add to it."""


class HashAlarm(Conflict):
    """The same kind of machine made other bytes from the same fingerprint, or storage changed them.

    Something is not deterministic, or broken.
    """


@dataclass(frozen=True)
class _Record:
    """What a kind of machine made of an object."""

    sha256: str
    """What it made first."""
    others: tuple[str, ...]
    """What it made later, of something that varies."""
    varies: bool

    @property
    def all(self) -> tuple[str, ...]:
        return (self.sha256, *self.others)

    def with_another(self, sha256: str) -> dict[str, Json]:
        """The record as it is stored, with these bytes too."""
        return {"sha256": self.sha256, "others": [*self.others, sha256], "varies": True}


@dataclass(frozen=True)
class Writers:
    """The kinds of machines that make one generation's objects."""

    store: Store
    folder: str
    """Of this generation's, with a slash at the end."""
    fingerprint: str
    """Under which this process makes objects: another one is another kind."""
    way: str = ""
    """Likewise, see ``Job``."""

    def enrol(self) -> str:
        """Writes down, before this process's first object, what kind of machine makes objects here.

        Returns the kind's name.
        """
        who = (self.store.uri, self.folder, machine_kind(), self.fingerprint, self.way)
        if who not in _enrolled:
            way = {"way": self.way} if self.way else {}
            data = canonical({"machine": machine_kind(), "fingerprint": self.fingerprint, **way})
            self.store.put(f"{self.folder}{kind_name(data)}.json", data)
            _enrolled[who] = kind_name(data)
        return _enrolled[who]

    def record(self, key: str, sha256: str, *, varies: bool = False) -> bool:
        """Writes down that this kind makes these bytes of an object; False if something was known of it.

        ``varies``: other bytes may come out another time, without a fault. HashAlarm if this kind made other
        bytes before, unless those or these vary.
        """
        place = f"{MADE}{self.enrol()}/{key}.json"
        data = canonical(sealed({"sha256": sha256} | ({"varies": True} if varies else {})))
        for _ in range(TRIES):
            try:
                return self.store.put(place, data)
            except Conflict as conflict:
                stored, info = self.store.get_version(place)
                before = self._parse(stored, place)
                if before is None:  # damaged: nothing is known
                    overwrite(self.store, place, data)
                    return True
                if sha256 in before.all:
                    return False
                if not varies and not before.varies:
                    raise self._alarm(key) from conflict
                both = canonical(sealed(before.with_another(sha256)))
                with suppress(Conflict):  # of another writer that adds to it
                    self.store.replace(place, both, if_match=info.etag or "")
                    return False
        raise Conflict(f"{self.store.where(place)} is changed by others again and again: run this once more")

    def check(self, key: str, sha256: str, *, first: bool, conflict: Conflict) -> None:
        """Raises HashAlarm unless another kind of machine made the bytes ``sha256`` that lie at ``key``.

        ``first``: what ``record`` said of ours. Where nothing was recorded before, an earlier version wrote
        the object, and told all writers of a folder apart but not those of an object.
        """
        made = self._made(key)
        if any(sha256 in record.all for record in made.values()):
            return
        ours = self.enrol()
        if not first or made.keys() - {ours}:
            raise HashAlarm(
                f"{self.store.where(key)} holds other bytes than this job wrote there, so its storage or "
                "hardware is faulty, or something is not deterministic: keep a copy of it and report it; "
                "once it is deleted, the same command makes it again"
            ) from conflict
        if [info.key for info in self.store.list(self.folder)] == [f"{self.folder}{ours}.json"]:
            raise self._alarm(key) from conflict

    def _made(self, key: str) -> Mapping[str, "_Record"]:
        """What each kind of machine made of an object, where that is known."""
        made: dict[str, _Record] = {}
        for info in self.store.list(self.folder):
            kind = info.key.removeprefix(self.folder).removesuffix(".json")
            if (record := self._read(f"{MADE}{kind}/{key}.json")) is not None:
                made[kind] = record
        return made

    def _read(self, place: str) -> "_Record | None":
        """A record; None where there is none, or a damaged one."""
        try:
            return self._parse(self.store.get(place), place)
        except NotFound:
            return None

    def _parse(self, data: bytes, place: str) -> "_Record | None":
        try:
            there = parse_json(data, self.store.where(place))
        except Damaged:
            return None
        sha256, others = there.get("sha256"), there.get("others", [])
        return None if sha256 is None else _Record(sha256, tuple(others), bool(there.get("varies")))

    def _alarm(self, key: str) -> HashAlarm:
        return HashAlarm(
            f"{self.store.where(key)} came out differently from the same job on the same kind of machine"
            f" ({machine_kind()}), so something is not deterministic or the hardware is faulty: keep the "
            "folder, and report it"
        )


def kind_name(writer: bytes) -> str:
    """The name of a kind of machine: the hash of its record."""
    return hashlib.sha256(writer).hexdigest()[:16]


_enrolled: dict[tuple[str, str, str, str, str], str] = {}
