"""What a job leaves for its consumers: the manifest and the listing of its objects; knows no writing.

A manifest is small whatever the size of the job: the markers of its objects lie in a *listing*, one JSON line
per object. An extended job has a manifest and a listing per generation; the newest
manifest counts.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from ray_dit.errors import NotFound, UserError
from ray_dit.ledger.restore import read_twice
from ray_dit.ledger.results import F, Facts, Listing, Manifest, Marker, R, parse_manifest, parse_marker
from ray_dit.ledger.stored_json import parse_json, read_json
from ray_dit.storage.open import open_store
from ray_dit.storage.store import CHUNK, Store

FORMAT = 1

HOLDS = {
    "train-vae": "a VAE",
    "encode": "latents",
    "train": "a training run",
    "model": "a model",
    "generate": "a dataset",
    "evaluate": "an evaluation",
}
MADE_BY = {"model": "train"}

LAST_GENERATION = 99
"""Readers sort names, so all generations have numbers of two digits."""

_MANIFEST = re.compile(r"manifest-g(\d\d)\.json$")


def generation_tag(generation: int) -> str:
    """``""`` for what a job made first, ``-g01`` for its first extension, and so on."""
    return f"-g{generation:02d}" if generation else ""


def generation_prefix(generation: int) -> str:
    """What the names of a generation's objects begin with: ``g01-`` in the first extension."""
    return f"{generation_tag(generation)[1:]}-" if generation else ""


def job_key(generation: int) -> str:
    """Where a generation's fingerprint and parts lie."""
    return f"_job{generation_tag(generation)}.json"


def manifest_key(generation: int) -> str:
    """Where a generation's manifest lies."""
    return f"manifest{generation_tag(generation)}.json"


def listing_key(generation: int) -> str:
    """Where the markers of a generation's objects are listed."""
    return f"manifest/objects{generation_tag(generation)}.jsonl"


def plain_listing_key(generation: int) -> str:
    """Where the markers of a generation's plain objects are listed."""
    return f"manifest/plain{generation_tag(generation)}.jsonl"


def read_manifest(place: str | Store, result: type[R]) -> Manifest[R]:
    """The manifest a consumer starts from: of a finished job of the result's stage, the newest generation.

    NotFound if nothing is there, UserError if the job is unfinished or another stage's, each saying what to
    do.
    """
    store = open_store(place) if isinstance(place, str) else place
    check_finished(store, result.stage_name)
    key = manifest_key(last_generation(store))
    return parse_manifest(read_json(store, key), result, store.where(key))


def tied_manifest(place: str | Store, result: type[R], sha256: str | None) -> Manifest[R]:
    """The manifest of the generation that a consumer has begun with, which is known by its hash.

    The newest one where there is none of that hash, or none is given; errors as ``read_manifest``.
    """
    store = open_store(place) if isinstance(place, str) else place
    manifest = read_manifest(store, result)
    for generation in range(len(manifest.listings) - 2, -1, -1):
        if sha256 is None or manifest.sha256 == sha256:
            break
        key = manifest_key(generation)
        there = parse_manifest(read_json(store, key), result, store.where(key))
        if there.sha256 == sha256:
            return there
    return manifest


def check_finished(store: Store, stage: str) -> None:
    """NotFound or UserError, saying what to do, unless ``store`` holds a finished job of that stage."""
    wanted, made_by = HOLDS.get(stage, stage), MADE_BY.get(stage, stage)
    job = read_json(store, job_key(0), absent=None)
    if job is None:
        raise NotFound(
            f"{store.uri} holds no job of ray-dit, where {wanted} ({stage}) should be: check the path, or run"
            f" ray-dit {made_by} first"
        )
    if not isinstance(job.get("stage"), str) or len(job["stage"]) > 100:
        raise UserError(f"{store.where(job_key(0))} is damaged: restore it, or make the folder again")
    if job["stage"] != stage:
        holds = HOLDS.get(job["stage"], job["stage"])
        raise UserError(
            f"{store.uri} holds {holds} ({job['stage']}), where {wanted} ({stage}) should be: give the "
            "folder that holds them"
        )
    if store.head(manifest_key(last_generation(store))) is None:
        raise UserError(
            f"{store.uri} is unfinished: run ray-dit {made_by} again, and it goes on where it stopped"
        )


def last_generation(store: Store) -> int:
    """The newest generation with a manifest; 0 also where there is none."""
    found = (_MANIFEST.match(info.key) for info in store.list("manifest-g"))
    return max((int(match.group(1)) for match in found if match), default=0)


def manifest_objects(store: Store, manifest: Manifest[Any], facts: type[F]) -> Iterator[Marker[F]]:
    """The markers of a finished job's objects, streamed.

    Older generations first, each in the order it was listed.
    """
    for listing in manifest.listings:
        yield from listed(store, listing, facts)


def extended_objects(store: Store, generation: int, facts: type[F]) -> Iterator[Marker[F]]:
    """The markers of what a generation extends, streamed as by ``manifest_objects``; none of the first."""
    if generation:
        key = manifest_key(generation - 1)
        before = parse_manifest(read_json(store, key), Facts, store.where(key))
        yield from manifest_objects(store, before, facts)


def plain_objects(store: Store, manifest: Manifest[Any]) -> list[Marker[Facts]]:
    """The markers of a finished job's plain objects by key; none of a job of an earlier version.

    What a later generation replaced is what it made of it.
    """
    found = {marker.key: marker for listing in manifest.plain for marker in listed(store, listing, Facts)}
    return [found[key] for key in sorted(found)]


def listed(store: Store, listing: Listing, facts: type[F]) -> Iterator[Marker[F]]:
    """The markers in one listing, one parsed at a time; Damaged where it is not the manifest's.

    It is read whole first, into a file: parts of it have no hash, and it may be larger than memory.
    """
    where = store.where(listing.key)
    with tempfile.TemporaryFile() as lines:
        read_twice(store, listing.key, lambda: _copied(store, listing, lines))
        lines.seek(0)
        for line in lines:
            yield parse_marker(parse_json(line, where), facts, where)


def _copied(store: Store, listing: Listing, file: BinaryIO) -> bool | None:
    """Copies a listing into an empty file; None, and the file empty, where it is not the manifest's."""
    sha256 = hashlib.sha256()
    with store.open_file(listing.key) as source:
        while chunk := source.read(CHUNK):
            sha256.update(chunk)
            file.write(chunk)
    if sha256.hexdigest() == listing.sha256:
        return True
    file.seek(0)
    file.truncate()
    return None
