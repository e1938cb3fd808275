"""The job protocol: fingerprint first, objects and their markers, manifest last.

Knows nothing of what objects hold.

::

    _job.json              the fingerprint and its parts; the first write
    data/...               objects, their keys chosen by the stage
    _markers/NAME.json     one per object: key, bytes, sha256 and the stage's deterministic facts
    _plain/KEY.json        one per plain object, which has no facts: README, plan, checkpoint
    manifest/objects.jsonl all markers
    manifest/plain.jsonl   those of plain objects
    manifest.json          the summary; the last write
    _runs/...              clocks, hosts, hardware: outside every equality

Every write is put-if-absent and its bytes are a function of (fingerprint, name), so a job may be killed
anywhere, run again, or run twice at the same time. An extension is a new generation (``_job-g01.json``,
``data/g01-...``, ``manifest-g01.json``) beside what is there. docs/store.md has the reasoning.
"""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from ray_dit.errors import Conflict, Damaged
from ray_dit.ledger.comparison import Comparison
from ray_dit.ledger.description import (
    after,
    check_extension,
    difference,
    extends,
    known_description,
    read_description,
    same_but_parts,
    way_out,
)
from ray_dit.ledger.manifest import (
    FORMAT,
    check_finished,
    generation_prefix,
    generation_tag,
    job_key,
    last_generation,
    listed,
    listing_key,
    manifest_key,
    plain_listing_key,
    plain_objects,
)
from ray_dit.ledger.markers import in_order, mark, marker_at, read_marker, unless_damaged
from ray_dit.ledger.plain import MadeAgain, Plain
from ray_dit.ledger.restore import hash_of, overwrite, put_back
from ray_dit.ledger.results import (
    MANIFEST_FIELDS,
    F,
    Facts,
    Listing,
    Manifest,
    Marker,
    R,
    parse_manifest,
)
from ray_dit.ledger.runs import RunRecord
from ray_dit.ledger.settling import Objects
from ray_dit.ledger.stored_json import Json, canonical, json_line, read_json, sealed
from ray_dit.ledger.writers import WRITERS, Writers
from ray_dit.storage.store import FileBytes, Store, ahead

_AS_WRITTEN = Comparison()
_log = logging.getLogger(__name__)


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
    repairing: bool = False
    """Whether ``put`` and ``put_plain`` put their bytes back where an object with a marker is missing or
    damaged."""
    way: str = ""
    """Of several ways to make the objects that come to other bytes, the one taken: a hash."""

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
        job: Json = ours_only | extends(store, generation)
        fingerprint = hashlib.sha256(canonical(job)).hexdigest()
        if store.head(manifest_key(generation)) is None:
            store = store.checked()
        ours = cls(store, stage, fingerprint, generation)
        try:
            store.put(job_key(generation), canonical(job | {"fingerprint": fingerprint}))
            return ours
        except Conflict as error:
            there = read_description(store, generation, job | {"fingerprint": fingerprint})
            same = same_but_parts(there, job) and comparison.same(
                there["parts"], job["parts"], libraries=not accept_fingerprint
            )
            if not same:
                raise Conflict(difference(store, there, job, comparison, generation)) from error
            other = comparison.other_rules(stage, there["parts"])
            if other and store.head(manifest_key(generation)) is None:
                raise Conflict(
                    f"{store.uri} was begun {other[0]}: {way_out(store, other[1], generation)}"
                ) from error
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
        may_change: Iterable[str],
        accept_fingerprint: bool = False,
        comparison: Comparison = _AS_WRITTEN,
    ) -> "Job":
        """The next generation of a finished job, or the one that was begun with these parts.

        The newest generation itself where these are its parts: nothing is to be added then. Its objects get
        keys of their own (``prefix``), its manifest lists those of all generations, and until that is written
        consumers see the generation before.

        Conflict where something else differs from the generation before than ``may_change``, dotted names of
        parts (``inputs.images``) or of what they lie in (``config.model``); and, as in ``open``, where
        another extension has been begun.
        """
        check_finished(store, stage)  # says so if the job is unfinished, or another's
        generation = last_generation(store)
        if store.head(job_key(generation + 1)) is not None:
            generation += 1
        else:
            there = (known_description(store, generation) or {}).get("parts", {})
            if not comparison.same(there, parts, libraries=not accept_fingerprint):
                check_extension(store, comparison, there, parts, may_change, accept_fingerprint)
                generation = after(store, generation)
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
        return generation_prefix(self.generation)

    def is_finished(self) -> bool:
        """Whether the last write, that of the manifest, is done."""
        return self.store.head(manifest_key(self.generation)) is not None

    def manifest(self, result: type[F]) -> Manifest[F] | None:
        """The finished job's manifest, None while it is unfinished."""
        key = manifest_key(self.generation)
        stored = read_json(self.store, key, absent=None)
        return None if stored is None else parse_manifest(stored, result, self.store.where(key))

    def whole(self, result: type[F]) -> Manifest[F] | None:
        """As ``manifest``; None too, with a warning, where it or a listing is missing or damaged.

        A stage then goes on as with an unfinished job, and ``finish`` makes them again.
        """
        try:
            manifest = self.manifest(result)
        except Damaged as error:
            _log.warning("%s; it is made again", error)
            return None
        for listing in (*manifest.listings[-1:], *manifest.plain[-1:]) if manifest else ():
            if not self._is_whole(listing):
                _log.warning("%s is missing or damaged; it is made again", self.store.where(listing.key))
                return None
        return manifest

    def damage(self, manifest: Manifest[Any], skip: tuple[str, ...] = ()) -> list[str]:
        """Keys of the generation's objects that are missing or damaged, all read anew: for jobs of few.

        Those that start with one of ``skip`` are not looked at.
        """
        markers = (
            marker
            for listing in (*manifest.listings[-1:], *manifest.plain[-1:])
            for marker in listed(self.store, listing, Facts)
        )
        objects = {marker.key: marker.sha256 for marker in markers if not marker.key.startswith(skip)}
        found = ahead(lambda key: hash_of(self.store, key), objects)
        return [key for key, sha256 in zip(objects, found, strict=True) if sha256 != objects[key]]

    def restore_markers(self, manifest: Manifest[Any]) -> None:
        """Puts back the finished job's markers that are missing or damaged: its listings repeat them."""
        places = [
            (self._marker_key(marker.name), marker)
            for marker in listed(self.store, manifest.listings[-1], Facts)
            if marker.name is not None
        ]
        for listing in manifest.plain[-1:]:
            places += [(self.plain.place(plain.key), plain) for plain in listed(self.store, listing, Facts)]

        def restore(place: str, marker: Marker[Facts]) -> bool:
            data = canonical(marker.to_json())
            return put_back(self.store, place, data, hashlib.sha256(data).hexdigest())

        for _ in ahead(lambda entry: restore(*entry), places):
            pass

    def drop_damaged_markers(self) -> list[str]:
        """Deletes the markers that are damaged, so that their objects are made again; their names."""

        def drop(name: str) -> bool:
            try:
                self.marker(name, Facts)
            except Damaged as error:
                _log.warning("%s; its object is made again", error)
                self.store.delete(self._marker_key(name))
                return True
            return False

        names = list(self.names())
        return [name for name, dropped in zip(names, ahead(drop, names), strict=True) if dropped]

    def marker(self, name: str, facts: type[F]) -> Marker[F] | None:
        """The marker of the object ``name``, None while it is not done."""
        return read_marker(self.store, self._marker_key(name), facts)

    def names(self) -> Iterator[str]:
        """Names of the objects that are done, streamed.

        It takes one request per thousand, ``marker`` one each.
        """
        folder = self._marker_key("").removesuffix(".json")
        return (info.key.removeprefix(folder).removesuffix(".json") for info in self.store.list(folder))

    def markers(self, facts: type[F], names: Iterable[str] | None = None) -> Iterator[Marker[F]]:
        """The markers of these objects, by default of all that are done ``in_order``, read some ahead."""

        def read(name: str) -> Marker[F]:
            return marker_at(self.store, self._marker_key(name), facts)

        return ahead(read, sorted(self.names(), key=in_order) if names is None else names)

    def forget(self, names: Iterable[str]) -> None:
        """Deletes the markers of these objects, so that the job's next run makes them again."""
        for name in names:
            self.store.delete(self._marker_key(name))

    def put(
        self,
        name: str,
        key: str,
        data: bytes,
        facts: F,
        *,
        varies: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> Marker[F]:
        """Stores an object that was computed, then its marker, which is returned.

        Where the marker is there already, nothing is written, but by a job that is ``repairing``. ``varies``:
        what it was made of is not there as it was planned, so that other bytes may come out another time; of
        several writers the first with a marker counts. ``files``: objects stored before it, all of which it
        lists as JSON: ``{"files": [{"key": ..., "sha256": ...}, ...]}``.

        HashAlarm if this kind of machine made the object before with other bytes; between kinds of machines
        the first writer's object stays.
        """
        marker = mark(name, key, data, facts, fingerprint=self.accepted, files=files)
        objects = Objects(self.store, self._marker_key(name), marker, data, files or {})
        done = unless_damaged(lambda: self.marker(name, type(facts)))
        if done is not None:
            if self.repairing:
                objects.put_back(done.sha256)
            return done
        first = self._writers.record(key, marker.sha256, varies=varies)
        try:
            objects.put()
        except Conflict as conflict:
            patience = self.settle_seconds
            return objects.settle(self._writers, first=first, conflict=conflict, patience=patience)
        return marker

    def put_plain(self, key: str, data: bytes, *, computed: bool = False) -> None:
        """Stores an object without facts, and a marker by which ``finish`` lists it.

        What follows from the job alone (a plan, a card) is put back where it is damaged. ``computed``: by
        floating-point arithmetic, so that another kind of machine makes other bytes: as in ``put``, the first
        writer's stays, or HashAlarm.
        """
        self.plain.put(key, data, computed=computed)

    def restore_plain(self, made_again: MadeAgain) -> Iterator[str]:
        """Puts back those plain objects that are missing or damaged and can be made again; yields their keys.

        UserError where other bytes come out.
        """
        manifest = unless_damaged(lambda: self.manifest(Facts))
        listings = manifest.plain if manifest else ()
        if manifest and listings and all(map(self._is_whole, listings)):
            yield from self.plain.restore(plain_objects(self.store, manifest), made_again)
        else:
            yield from self.plain.remake(made_again)
            yield from self.plain.restore(self.plain.markers(), made_again)

    def finish(
        self, result: R | Callable[[], R], *, objects: Iterable[Marker[Any]] | None = None
    ) -> Manifest[R]:
        """Writes the listings, then the manifest, the last write, and returns it.

        ``result``: the facts, or what gives them once all ``objects`` have been taken.
        ``objects``: markers, streamed, in the order they shall be listed; by default all, in ``in_order``.
        Their lines are gathered in a file, so none is held, whatever their number. Listings and a manifest
        that are damaged are replaced.
        """
        job = read_json(self.store, job_key(self.generation))
        listing, accepted = self._list(
            listing_key(self.generation), self.markers(Facts) if objects is None else objects
        )
        found: R = result() if callable(result) else result
        facts = found.to_json()
        if clash := MANIFEST_FIELDS & facts.keys():
            raise ValueError(f"a manifest's own fields cannot be facts: {sorted(clash)}")
        before = unless_damaged(lambda: self.manifest(type(found)))
        as_before = before is not None and before.facts == found and before.listings[-1] == listing
        if before is not None and as_before and not before.plain:
            return before  # of an earlier version, which listed no plain objects
        plain, _ = self._list(plain_listing_key(self.generation), self.plain.markers())
        older = self._before()
        manifest = sealed(
            {
                **facts,
                **job,
                "listings": [*older["listings"], listing.model_dump()],
                "plain": [*older["plain"], plain.model_dump()],
                **({"accepted": accepted} if accepted else {}),
            }
        )
        key = manifest_key(self.generation)
        self._put_derived(key, canonical(manifest))
        return parse_manifest(manifest, type(found), self.store.where(key))

    def run(self, facts: Mapping[str, Json]) -> RunRecord:
        """Begins the record of this run: what may differ between runs of the same job."""
        return RunRecord.start(self.store, facts)

    @property
    def plain(self) -> Plain:
        """This generation's plain objects."""
        return Plain(self.store, self.generation, self._writers, self.accepted, self.repairing)

    @property
    def _writers(self) -> Writers:
        folder = f"{WRITERS}{generation_tag(self.generation)}/"
        return Writers(self.store, folder, self.accepted or self.fingerprint, self.way)

    def _marker_key(self, name: str) -> str:
        return f"_markers{generation_tag(self.generation)}/{name}.json"

    def _accepted_as(self, fingerprint: str, job: Json) -> "Job":
        """This job as a continuation of another, what it accepts written down beside it."""
        self.store.put(
            f"_accepted/{self.fingerprint}.json", canonical(job | {"fingerprint": self.fingerprint})
        )
        return Job(self.store, self.stage, fingerprint, self.generation, accepted=self.fingerprint)

    def _is_whole(self, listing: Listing) -> bool:
        return hash_of(self.store, listing.key) == listing.sha256

    def _list(self, key: str, objects: Iterable[Marker[Any]]) -> tuple[Listing, list[str]]:
        """Stores a listing; its entry in the manifest, and the accepted fingerprints that occur in it."""
        count = size = 0
        accepted: set[str] = set()
        sha256 = hashlib.sha256()
        with tempfile.TemporaryFile() as lines:
            for marker in objects:
                line = json_line(marker.to_json())
                lines.write(line)
                sha256.update(line)
                count, size = count + 1, size + marker.bytes
                accepted |= {marker.fingerprint} if marker.fingerprint else set()
            lines.flush()
            self._put_derived(key, lines)
        return Listing(key=key, sha256=sha256.hexdigest(), count=count, bytes=size), sorted(accepted)

    def _put_derived(self, key: str, data: bytes | BinaryIO) -> None:
        """Writes a manifest, or the listing in a file; Conflict if the job was finished with another one.

        One that no whole manifest vouches for is damaged, or was left by a killed run.
        """
        try:
            self.store.put(key, data) if isinstance(data, bytes) else self.store.put_file(key, data)
        except Conflict:
            if self.whole(Facts) is not None:
                raise
            overwrite(self.store, key, data if isinstance(data, bytes) else FileBytes(data).whole)

    def _before(self) -> dict[str, Json]:
        """What the manifest of the generation before lists."""
        there: dict[str, Json] = {}
        if self.generation:
            there = read_json(self.store, manifest_key(self.generation - 1))
        return {"listings": there.get("listings", []), "plain": there.get("plain", [])}
