"""The job protocol: fingerprint first, objects and their markers, manifest last.

Knows nothing of what objects hold.

::

    _job.json              the fingerprint and its parts; the first write
    data/...               objects, their keys chosen by the stage
    _markers/NAME.json     one per object: key, bytes, sha256 and the stage's deterministic facts
    manifest/objects.jsonl all markers
    manifest.json          the summary; the last write
    _runs/...              clocks, hosts, hardware: outside every equality

Every write is put-if-absent and its bytes are a function of (fingerprint, name), so a job may be killed
anywhere, run again, or run twice at the same time. An extension is a new generation (``_job-g01.json``,
``data/g01-...``, ``manifest-g01.json``) beside what is there. docs/store.md has the reasoning.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray_dit.errors import Conflict, UserError
from ray_dit.ledger.comparison import Comparison
from ray_dit.ledger.manifest import (
    FORMAT,
    check_finished,
    generation_tag,
    job_key,
    last_generation,
    listing_key,
    manifest_key,
    manifest_objects,
)
from ray_dit.ledger.results import (
    MANIFEST_FIELDS,
    F,
    Facts,
    Manifest,
    Marker,
    R,
    parse_manifest,
    parse_marker,
)
from ray_dit.ledger.runs import RunRecord, machine_kind
from ray_dit.ledger.stored_json import Json, canonical, json_line, read_json
from ray_dit.storage.store import Store, ahead

_AS_WRITTEN = Comparison()


class HashAlarm(Conflict):
    """The same kind of machine made other bytes from the same fingerprint.

    Something is not deterministic, or broken.
    """


@dataclass(frozen=True)
class Job:
    """One stage's work on one folder; picklable, so workers get it as it is."""

    store: Store
    stage: str
    fingerprint: str
    """The folder's: the job everything in it belongs to."""
    generation: int = 0
    accepted: str | None = None
    """Our own fingerprint, where other library versions were accepted; recorded in the markers made with
    them."""
    settle_seconds: float = 10.0
    """How long the loser between two kinds of machines waits for the winner's marker before it takes it for
    dead."""

    @classmethod
    def open(
        cls,
        store: Store,
        stage: str,
        parts: Mapping[str, Json],
        *,
        accept_fingerprint: bool = False,
        generation: int = 0,
        comparison: Comparison = _AS_WRITTEN,
    ) -> "Job":
        """Begins or continues the job that ``parts`` (everything that determines its bytes) describe.

        Conflict if the folder belongs to a job with other parts; the message names them.
        ``accept_fingerprint`` goes on with a job that differs in library versions only. ``generation``: see
        ``extend``. ``comparison`` says what parts mean that another version wrote; the folder keeps the
        fingerprint it was begun with. An unfinished job is refused where the stage's rules have changed; a
        finished one stays readable.
        """
        ours_only: Json = {"format": FORMAT, "stage": stage, "parts": dict(parts)}
        job: Json = ours_only | _extends(store, generation)
        fingerprint = hashlib.sha256(canonical(job)).hexdigest()
        if store.head(manifest_key(generation)) is None:
            store = store.checked()
        ours = cls(store, stage, fingerprint, generation)
        try:
            store.put(job_key(generation), canonical(job | {"fingerprint": fingerprint}))
            return ours
        except Conflict as error:
            there = read_json(store, job_key(generation))
            same = _same_but_parts(there, job) and comparison.same(
                there["parts"], job["parts"], libraries=not accept_fingerprint
            )
            if not same:
                raise Conflict(_difference(store, there, job, comparison)) from error
            other = comparison.other_rules(stage, there["parts"])
            if other and store.head(manifest_key(generation)) is None:
                raise Conflict(f"{store.uri} was begun {other[0]}: {_way_out(store, other[1])}") from error
            if comparison.same(there["parts"], job["parts"]):
                return replace(ours, fingerprint=there["fingerprint"])
            return ours._accepted_as(there["fingerprint"], job)

    @classmethod
    def extend(
        cls,
        store: Store,
        stage: str,
        parts: Mapping[str, Json],
        *,
        accept_fingerprint: bool = False,
        comparison: Comparison = _AS_WRITTEN,
    ) -> "Job":
        """The next generation of a finished job, or the one that was begun with these parts.

        Its objects get keys of their own (``prefix``), its manifest lists those of all generations, and until
        that is written consumers see the generation before.
        """
        newest = last_generation(store)
        if newest == 0:
            check_finished(store, stage)  # says so if the job is unfinished, or another's
        there = read_json(store, job_key(newest))
        same = there["stage"] == stage and comparison.same(there["parts"], parts)
        generation = newest if same and comparison.other_rules(stage, there["parts"]) is None else newest + 1
        return cls.open(
            store,
            stage,
            parts,
            accept_fingerprint=accept_fingerprint,
            generation=generation,
            comparison=comparison,
        )

    @property
    def prefix(self) -> str:
        """What this generation's objects are named with: ``data/`` + prefix + name; empty in the first."""
        return f"{generation_tag(self.generation)[1:]}-" if self.generation else ""

    def is_finished(self) -> bool:
        """Whether the last write, that of the manifest, is done."""
        return self.store.head(manifest_key(self.generation)) is not None

    def manifest(self, result: type[F]) -> Manifest[F] | None:
        """The finished job's manifest, None while it is unfinished."""
        key = manifest_key(self.generation)
        stored = read_json(self.store, key, absent=None)
        return None if stored is None else parse_manifest(stored, result, self.store.where(key))

    def finished(self, result: type[F]) -> Manifest[F] | None:
        """As ``manifest``, for jobs of few objects: UserError if one is missing, at a request per object."""
        manifest = self.manifest(result)
        for marker in manifest_objects(self.store, manifest, Facts) if manifest else ():
            if self.store.head(marker.key) is None:
                raise UserError(
                    f"{self.store.where(marker.key)} is missing, though its job is finished: restore it, or "
                    f"delete {self.store.uri} and run the stage again"
                )
        return manifest

    def marker(self, name: str, facts: type[F]) -> Marker[F] | None:
        """The marker of the object ``name``, None while it is not done."""
        key = self._marker_key(name)
        stored = read_json(self.store, key, absent=None)
        return None if stored is None else parse_marker(stored, facts, self.store.where(key))

    def names(self) -> Iterator[str]:
        """Names of the objects that are done, streamed.

        It takes one request per thousand, ``marker`` one each.
        """
        folder = self._marker_key("").removesuffix(".json")
        return (info.key.removeprefix(folder).removesuffix(".json") for info in self.store.list(folder))

    def markers(self, facts: type[F], names: Iterable[str] | None = None) -> Iterator[Marker[F]]:
        """The markers of these objects (by default of all that are done, sorted by name), read some ahead."""

        def read(name: str) -> Marker[F]:
            key = self._marker_key(name)
            return parse_marker(read_json(self.store, key), facts, self.store.where(key))

        return ahead(read, sorted(self.names()) if names is None else names)

    def put(self, name: str, key: str, data: bytes, facts: F) -> Marker[F]:
        """Stores an object, then its marker, which is returned.

        Where the marker is there already, nothing is written.

        HashAlarm if this kind of machine made the object before with other bytes; between kinds of machines
        the first writer's object stays.
        """
        done = self.marker(name, type(facts))
        if done is not None:
            return done
        made_with = {"fingerprint": self.accepted} if self.accepted else {}
        sha256 = hashlib.sha256(data).hexdigest()
        marker = Marker(key=key, bytes=len(data), sha256=sha256, facts=facts, **made_with)
        stored = canonical(marker.to_json())
        self._enrol()
        try:
            self.store.put(key, data)
            self.store.put(self._marker_key(name), stored)
        except Conflict as conflict:
            return self._settle(name, data, marker, conflict)
        return marker

    def put_plain(self, key: str, data: bytes) -> None:
        """Stores an object of the result that needs no marker: an image, a plan; HashAlarm as in ``put``."""
        self._enrol()
        try:
            self.store.put(key, data)
        except Conflict as conflict:
            self._alarm(key, conflict)

    def finish(self, result: R, *, objects: Iterable[Marker[Any]] | None = None) -> Manifest[R]:
        """Writes the listing, then the manifest, the last write, and returns it.

        ``objects``: markers, streamed, in the order they shall be listed; by default all, sorted by name.
        Their lines are gathered as bytes (about 250 per object), never as Python objects.
        """
        facts = result.to_json()
        if clash := MANIFEST_FIELDS & facts.keys():
            raise ValueError(f"a manifest's own fields cannot be facts: {sorted(clash)}")
        job = read_json(self.store, job_key(self.generation))
        listing, accepted = self._list(self.markers(Facts) if objects is None else objects)
        manifest = {
            **facts,
            **job,
            "listings": [*self._older_listings(), listing],
            **({"accepted": accepted} if accepted else {}),
        }
        key = manifest_key(self.generation)
        self.store.put(key, canonical(manifest))
        return parse_manifest(manifest, type(result), self.store.where(key))

    def run(self, facts: Mapping[str, Json]) -> RunRecord:
        """Begins the record of this run: what may differ between runs of the same job."""
        return RunRecord.start(self.store, facts)

    @property
    def _writers(self) -> str:
        return f"_runs/writers{generation_tag(self.generation)}/"

    def _marker_key(self, name: str) -> str:
        return f"_markers{generation_tag(self.generation)}/{name}.json"

    def _accepted_as(self, fingerprint: str, job: Json) -> "Job":
        """This job as a continuation of another, what it accepts written down beside it."""
        self.store.put(
            f"_accepted/{self.fingerprint}.json", canonical(job | {"fingerprint": self.fingerprint})
        )
        return Job(self.store, self.stage, fingerprint, self.generation, accepted=self.fingerprint)

    def _list(self, objects: Iterable[Marker[Any]]) -> tuple[Json, list[str]]:
        """Stores the listing; its entry in the manifest, and the accepted fingerprints that occur in it."""
        lines = bytearray()
        count = size = 0
        accepted: set[str] = set()
        for marker in objects:
            lines += json_line(marker.to_json())
            count, size = count + 1, size + marker.bytes
            accepted |= {marker.fingerprint} if marker.fingerprint else set()
        data = bytes(lines)
        key = listing_key(self.generation)
        self.store.put(key, data)
        entry = {"key": key, "sha256": hashlib.sha256(data).hexdigest(), "count": count, "bytes": size}
        return entry, sorted(accepted)

    def _older_listings(self) -> list[Json]:
        return read_json(self.store, manifest_key(self.generation - 1))["listings"] if self.generation else []

    def _enrol(self) -> str:
        """Writes down, before this process's first object, what kind of machine makes objects here.

        Returns its key.
        """
        writer = {"machine": machine_kind(), "fingerprint": self.accepted or self.fingerprint}
        data = canonical(writer)
        key = f"{self._writers}{hashlib.sha256(data).hexdigest()[:16]}.json"
        if (self.store.uri, key) not in _enrolled:
            self.store.put(key, data)
            _enrolled.add((self.store.uri, key))
        return key

    def _settle(self, name: str, data: bytes, ours: Marker[F], conflict: Conflict) -> Marker[F]:
        """Two writers made different things: the first one's stays."""
        self._alarm(ours.key, conflict)
        theirs = self._await_marker(name, type(ours.facts))
        if theirs is not None:
            return theirs
        # Its writer died between object and marker: nobody can vouch for that object, so ours takes its
        # place.
        info = self.store.head(ours.key)
        if info is None:
            self.store.put(ours.key, data)
        elif self.store.sha256(ours.key) != ours.sha256:
            self.store.replace(ours.key, data, if_match=info.etag or "")
        try:
            self.store.put(self._marker_key(name), canonical(ours.to_json()))
        except Conflict as late:
            raise Conflict(
                f"{self.store.where(ours.key)} was made by two kinds of machines at the same moment: run "
                "ray-dit repair on the folder"
            ) from late
        return ours

    def _alarm(self, key: str, conflict: Conflict) -> None:
        """Raises HashAlarm where all writers of this job are of one kind."""
        if [info.key for info in self.store.list(self._writers)] == [self._enrol()]:
            raise HashAlarm(
                f"{self.store.where(key)} came out differently from the same job on the same kind of machine"
                f" ({machine_kind()}), so something is not deterministic or the hardware is faulty: keep the "
                "folder, and report it"
            ) from conflict

    def _await_marker(self, name: str, facts: type[F]) -> Marker[F] | None:
        end = time.monotonic() + self.settle_seconds
        while (marker := self.marker(name, facts)) is None and time.monotonic() < end:
            time.sleep(0.2)
        return marker


_enrolled: set[tuple[str, str]] = set()


def _same_but_parts(there: Json, ours: Json) -> bool:
    """Whether both are of one stage and format, and extend the same job or none."""
    return {**there, "parts": None, "fingerprint": None} == {**ours, "parts": None, "fingerprint": None}


def _extends(store: Store, generation: int) -> dict[str, str]:
    """What ties a generation to the one before, which must be finished."""
    if not generation:
        return {}
    key = manifest_key(generation - 1)
    before = read_json(store, key, absent=None)
    if before is None:
        raise UserError(f"{store.uri} is unfinished: finish it before it is extended")
    return {"extends": parse_manifest(before, Facts, store.where(key)).sha256}


def _difference(store: Store, there: Json, ours: Json, comparison: Comparison) -> str:
    """The sentence that refuses a job whose folder belongs to another one."""
    if there["stage"] != ours["stage"]:
        return f"{store.uri} belongs to {there['stage']}, not {ours['stage']}: take another output folder"
    if there["format"] != ours["format"]:
        return (
            f"{store.uri} has format {there['format']}, not {ours['format']}: use the ray-dit that began it"
        )
    changed = comparison.differences(there["parts"], ours["parts"])
    shown = ", ".join(
        f"{name}: {_short(old)} -> {_short(new)}" for name, (old, new) in [*changed.items()][:6]
    )
    more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
    ways = _way_out(store, "take another output folder, or go back to what it was begun with")
    if comparison.same(there["parts"], ours["parts"], libraries=False):
        ways = "go back to those versions, or add --accept-fingerprint to finish it with these"
    return f"{store.uri} was begun with other settings ({shown}{more}): {ways}"


def _way_out(store: Store, ways: str) -> str:
    if all(info.key.startswith(("_job", "_runs/", "_accepted/")) for info in store.list()):
        return f"nothing was made there yet, so delete it if no run is under way, or {ways}"
    return ways


def _short(value: Json) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
