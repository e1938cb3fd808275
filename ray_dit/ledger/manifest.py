"""What a job leaves for its consumers: manifest, listing of objects, canonical JSON; knows no writing.

A manifest is small whatever the size of the job: the markers of its objects lie in a *listing*, one JSON line
an object, which is read as a stream. An extended job has a manifest and a listing per generation; the newest
manifest counts.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from ray_dit.errors import NotFound, UserError
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

FORMAT = 1
Json = Any
Marker = dict[str, Json]
Manifest = dict[str, Json]

HOLDS = {
    "train-vae": "a VAE",
    "encode": "latents",
    "train": "a training run",
    "model": "a model",
    "generate": "a dataset",
    "evaluate": "an evaluation",
}
MADE_BY = {"model": "train"}

_MANIFEST = re.compile(r"manifest-g(\d\d)\.json$")
_RAISE = object()


def generation_tag(generation: int) -> str:
    """``""`` for what a job made first, ``-g01`` for its first extension, and so on."""
    return f"-g{generation:02d}" if generation else ""


def job_key(generation: int) -> str:
    """Where a generation's fingerprint and parts lie."""
    return f"_job{generation_tag(generation)}.json"


def manifest_key(generation: int) -> str:
    """Where a generation's manifest lies."""
    return f"manifest{generation_tag(generation)}.json"


def listing_key(generation: int) -> str:
    """Where the markers of a generation's objects are listed."""
    return f"manifest/objects{generation_tag(generation)}.jsonl"


def canonical(value: Json) -> bytes:
    """JSON as it is stored: sorted keys, indented by one, a newline at the end; one text a value."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def listing_line(marker: Marker) -> bytes:
    """A marker as one line of a listing."""
    text = json.dumps(marker, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def read_json(store: Store, key: str, *, absent: Json = _RAISE) -> Json:
    """A stored JSON value; ``absent`` where there is none, or NotFound without it."""
    try:
        data = store.get(key)
    except NotFound:
        if absent is _RAISE:
            raise
        return absent
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(
            f"{store.where(key)} is damaged: it is no JSON; delete it and run its stage again"
        ) from error


def read_manifest(place: str | Store, stage: str) -> Manifest:
    """The manifest a consumer starts from: of a finished job of that stage, the newest generation.

    NotFound if nothing is there, UserError if the job is unfinished or another stage's, each saying what to
    do.
    """
    store = open_store(place) if isinstance(place, str) else place
    wanted, made_by = HOLDS.get(stage, stage), MADE_BY.get(stage, stage)
    job = read_json(store, job_key(0), absent=None)
    if job is None:
        raise NotFound(
            f"{store.uri} holds no job of ray-dit, where {wanted} ({stage}) should be: check the path, or run"
            f" ray-dit {made_by} first"
        )
    if job["stage"] != stage:
        holds = HOLDS.get(job["stage"], job["stage"])
        raise UserError(
            f"{store.uri} holds {holds} ({job['stage']}), where {wanted} ({stage}) should be: give the "
            "folder that holds them"
        )
    manifest = read_json(store, manifest_key(last_generation(store)), absent=None)
    if manifest is None:
        raise UserError(
            f"{store.uri} is unfinished: run ray-dit {made_by} again, and it goes on where it stopped"
        )
    return manifest


def last_generation(store: Store) -> int:
    """The newest generation with a manifest; 0 also where there is none."""
    found = (_MANIFEST.match(info.key) for info in store.list("manifest-g"))
    return max((int(match.group(1)) for match in found if match), default=0)


def manifest_objects(store: Store, manifest: Manifest) -> Iterator[Marker]:
    """The markers of a finished job's objects, streamed.

    Older generations come first, each in the order it was listed.
    """
    for listing in manifest["listings"]:
        with store.open_file(listing["key"]) as lines:
            for line in lines:
                yield json.loads(line)


def manifest_sha256(manifest: Manifest) -> str:
    """The manifest's hash, which stands for every byte of the job in the fingerprints of its consumers."""
    return hashlib.sha256(canonical(manifest)).hexdigest()
