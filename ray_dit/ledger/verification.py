"""What is wrong with one job: each of its objects is read anew and held against what the others say of it.

Knows the protocol's objects and nothing of what they hold; what a manifest's numbers must be is told by its
stage's ``Result``. Everything is streamed: memory is bounded by the objects in flight, whatever their number.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

from ray_dit.errors import Conflict, Damaged, NotFound, UserError, first_message
from ray_dit.ledger.description import fingerprint_of, from_manifest, stored_description
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import (
    MADE_BY,
    generation_tag,
    job_key,
    last_generation,
    listed,
    manifest_key,
    manifest_objects,
    plain_objects,
)
from ray_dit.ledger.markers import listed_files, marker_at
from ray_dit.ledger.restore import hash_of
from ray_dit.ledger.results import Facts, Listing, Manifest, Marker, Result
from ray_dit.ledger.stored_json import Json, canonical, parse_json, read_json
from ray_dit.ledger.writers import WRITERS, kind_name
from ray_dit.storage.store import Store, ahead

Results = Mapping[str, type[Result]]
"""What each stage leaves, by its name."""

UNFINISHED = "unfinished"
FOREIGN = "_runs/ray_train/"
"""Ray Train's own notes, of which nothing is known here."""


@dataclass(frozen=True)
class Problem:
    """Something in a job that is not what the job says."""

    store: Store
    """The job's folder."""
    key: str
    what: str
    """``missing``, ``damaged``, or a sentence."""
    marker: Marker[Facts] | None = None
    """What the object should be; None for the protocol's own objects."""
    data: bytes | None = None
    """The right bytes, where the rest of the folder shows them."""

    @property
    def is_unfinished(self) -> bool:
        """Whether nothing is wrong but that the job is not done."""
        return self.what.startswith(UNFINISHED)

    def __str__(self) -> str:
        return f"{self.store.where(self.key)}: {self.what}"


@dataclass
class Tally:
    """What a verification has gone through so far."""

    jobs: int = 0
    objects: int = 0
    bytes: int = 0


def verify_job(folder: Store, tally: Tally, results: Results, *, threads: int = 8) -> Iterator[Problem]:
    """One job, all its generations: the protocol's own objects, then the others, several at a time."""
    last = last_generation(folder)
    own = [problem for number in range(last + 1) for problem in _own(folder, number)]
    yield from own
    if folder.head(job_key(last + 1)) is not None:
        yield _unfinished(folder, last + 1)
    manifest = None if own else _manifest(folder, last)
    if manifest is not None:
        yield from _numbers(folder, manifest, results)
    checks = _listed_checks(folder, manifest) if manifest is not None else _marked_checks(folder, last)
    before = {plain.key: plain.sha256 for plain in plain_objects(folder, manifest)} if manifest else {}
    extension = _marked_checks(folder, last + 1, before)
    for problems, size in ahead(lambda check: check(), chain(checks, extension), threads=threads):
        tally.objects, tally.bytes = tally.objects + 1, tally.bytes + size
        yield from problems
    for problem in ahead(lambda key: _note_problem(folder, key), _notes(folder), threads=threads):
        if problem is not None:
            yield problem


def _own(folder: Store, generation: int) -> Iterator[Problem]:
    """A generation's description, manifest and listings."""
    try:
        job = stored_description(folder, generation)
    except (Damaged, NotFound):
        job = from_manifest(folder, generation) or {}
        data = canonical(job) if job else None
        yield Problem(folder, job_key(generation), "its parts do not have its fingerprint", data=data)
    key = manifest_key(generation)
    try:
        manifest = _manifest(folder, generation)
    except UserError as error:
        yield Problem(folder, key, _reason(error))
        return
    if manifest is None:
        yield _unfinished(folder, generation)
        return
    if job and (manifest.fingerprint, manifest.parts) != (job["fingerprint"], job["parts"]):
        yield Problem(folder, key, "it is another job's")
    for listing in (*manifest.listings[-1:], *manifest.plain[-1:]):
        found = hash_of(folder, listing.key)
        if found != listing.sha256:
            yield Problem(folder, listing.key, _what(found))


def _manifest(folder: Store, generation: int) -> Manifest[Facts] | None:
    return Job(folder, "", "", generation).manifest(Facts)


def _unfinished(folder: Store, generation: int) -> Problem:
    try:
        stage = str(read_json(folder, job_key(generation)).get("stage"))
    except UserError:
        stage = "its stage"
    what = f"{UNFINISHED}: run ray-dit {MADE_BY.get(stage, stage)} again, and it goes on where it stopped"
    return Problem(folder, manifest_key(generation), what)


def _numbers(folder: Store, manifest: Manifest[Facts], results: Results) -> Iterator[Problem]:
    """Facts of the manifest that its objects' markers contradict."""
    kind = results.get(manifest.stage)
    if kind is None:
        return
    key = manifest_key(len(manifest.listings) - 1)
    stored = manifest.facts.to_json()
    objects = (marker.facts.to_json() for marker in manifest_objects(folder, manifest, Facts))
    try:
        expected = kind.model_validate(stored).expected(manifest.parts, objects)
    except (UserError, ValueError, KeyError, TypeError) as error:
        yield Problem(
            folder,
            key,
            f"its objects have facts of another kind than {manifest.stage} leaves: {first_message(error)}",
        )
        return
    for name, value in expected.items():
        if not same_value(stored.get(name), value):
            yield Problem(
                folder, key, f"its {name} is {stored.get(name)}, which does not fit its objects: {value}"
            )


def same_value(there: Json, expected: Json) -> bool:
    """Whether two facts are equal; floating-point ones to what the order of a sum may change."""
    if isinstance(expected, float) and isinstance(there, int | float):
        return math.isclose(there, expected, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list | tuple) and isinstance(there, list | tuple):
        return len(there) == len(expected) and all(map(same_value, there, expected))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    return there == expected


Check = Callable[[], tuple[list[Problem], int]]
"""Problems with an object, and its size."""


def _listed_checks(folder: Store, manifest: Manifest[Facts]) -> Iterator[Check]:
    """Of a finished job: the objects its listings name, each with its marker."""
    for number, listing in enumerate(manifest.listings):
        yield from _checks(folder, listing, f"_markers{generation_tag(number)}/")
    newest = {marker.key: marker.sha256 for marker in plain_objects(folder, manifest)}
    replacing = f"_plain{generation_tag(len(manifest.listings))}/"  # what an unfinished extension has made
    for number, listing in enumerate(manifest.plain):
        number += len(manifest.listings) - len(manifest.plain)
        for marker in listed(folder, listing, Facts):
            replaced = newest[marker.key] != marker.sha256
            other = partial(_marked_hash, folder, f"{replacing}{marker.key}.json")
            yield _check(folder, marker, f"_plain{generation_tag(number)}/", replaced=replaced, other=other)


def _checks(folder: Store, listing: Listing, markers: str) -> Iterator[Check]:
    for marker in listed(folder, listing, Facts):
        yield _check(folder, marker, markers)


def _marked_hash(folder: Store, place: str) -> str | None:
    """The hash that the marker at ``place`` promises; None where there is none that can be read."""
    try:
        return marker_at(folder, place, Facts).sha256
    except UserError:
        return None


def _check(
    folder: Store,
    marker: Marker[Facts],
    markers: str,
    *,
    replaced: bool = False,
    other: Callable[[], str | None] = lambda: None,
) -> Check:
    """``replaced``: by a later generation. ``other``: a hash that the object may have instead.

    It is that of the generation before or after, while the latter is not finished.
    """

    def check() -> tuple[list[Problem], int]:
        problems: list[Problem] = []
        found = marker.sha256 if replaced else hash_of(folder, marker.key)
        if found != marker.sha256 and (found is None or found != other()):
            problems.append(Problem(folder, marker.key, _what(found), marker))
        elif marker.files:
            problems += _file_problems(folder, marker)
        if marker.name is not None:
            key, data = f"{markers}{marker.name}.json", canonical(marker.to_json())
            found = hash_of(folder, key)
            if found != hashlib.sha256(data).hexdigest():
                problems.append(Problem(folder, key, _what(found), data=data))
        return problems, marker.bytes

    return check


def _file_problems(folder: Store, marker: Marker[Facts]) -> Iterator[Problem]:
    """What is wrong with the objects that the marker's object, which is whole, lists."""
    try:
        files = listed_files(folder.get(marker.key), folder.where(marker.key))
    except (Damaged, NotFound):
        yield Problem(folder, marker.key, "it lists no files, though its marker says so", marker)
        return
    for key, found in zip(files, ahead(partial(hash_of, folder), files, threads=4), strict=True):
        if found != files[key]:
            yield Problem(folder, key, _what(found), marker)


def _marked_checks(
    folder: Store, generation: int, before: Mapping[str, str] | None = None
) -> Iterator[Check]:
    """Of an unfinished job, or where its listings are damaged: the objects that have markers.

    ``before``: hashes of the plain objects of the generation before, which some of these will replace.
    """
    for markers in (f"_markers{generation_tag(generation)}/", f"_plain{generation_tag(generation)}/"):
        for info in folder.list(markers):
            yield _marked_check(folder, info.key, markers, before or {})


def _marked_check(folder: Store, place: str, markers: str, before: Mapping[str, str]) -> Check:
    def check() -> tuple[list[Problem], int]:
        try:
            marker = marker_at(folder, place, Facts)
        except NotFound:  # a checkpoint that was just pruned
            return [], 0
        except UserError as error:
            return [Problem(folder, place, _reason(error))], 0
        return _check(folder, marker, markers, other=lambda: before.get(marker.key))()

    return check


def _notes(folder: Store) -> Iterator[str]:
    """What was written down beside the result: accepted versions, runs, who made what."""
    for prefix in ("_accepted/", "_runs/"):
        for info in folder.list(prefix):
            if info.key.endswith(".json") and not info.key.startswith(FOREIGN):
                yield info.key


def _note_problem(folder: Store, key: str) -> Problem | None:
    there = _read_note(folder, key)
    whole = there is not None
    if there is not None and key.startswith("_accepted/"):
        whole = fingerprint_of(there) == there.get("fingerprint")
    if there is not None and key.startswith(WRITERS):
        whole = key.endswith(f"/{kind_name(canonical(there))}.json")
    return None if whole else Problem(folder, key, "damaged, a note that no result depends on: delete it")


def _read_note(folder: Store, key: str) -> dict[str, Json] | None:
    try:
        return parse_json(folder.get(key), key)
    except (Damaged, NotFound, Conflict):
        return None


def _what(found: str | None) -> str:
    return "missing" if found is None else "damaged"


def _reason(error: UserError) -> str:
    return "damaged" if isinstance(error, Damaged) else f"damaged, or of another version ({error})"
