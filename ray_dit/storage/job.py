"""The job protocol: fingerprint first, shards and their markers, manifest last; knows nothing of what shards hold.

::

    _job.json            the fingerprint and its parts; the first write
    data/...             objects, their keys chosen by the stage
    _markers/NAME.json   one an object: key, bytes, sha256 and the stage's deterministic facts
    manifest/objects.jsonl, manifest.json   all markers, and the summary: the last write
    _runs/ID/...         clocks, hosts, hardware: outside every equality

Every write is put-if-absent and its bytes are a function of (fingerprint, name), so a job may be killed anywhere, run
again or run twice at the same time. docs/store.md has the reasoning.
"""

import hashlib
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, cast

from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.storage.store import Store

FORMAT = 1
JOB, MANIFEST, OBJECTS = "_job.json", "manifest.json", "manifest/objects.jsonl"

Json = Any
Marker = dict[str, Json]
Manifest = dict[str, Json]

_HOLDS = {
    "train-vae": "a VAE",
    "encode": "latents",
    "train": "a model",
    "generate": "a dataset",
    "evaluate": "an evaluation",
}


@dataclass(frozen=True)
class Job:
    """One stage's work on one folder; picklable, so workers get it as it is."""

    store: Store
    stage: str
    fingerprint: str

    @classmethod
    def open(
        cls, store: Store, stage: str, parts: Mapping[str, Json], *, accept_fingerprint: bool = False
    ) -> "Job":
        """Begins or continues the job that ``parts`` (everything that determines its bytes) describe.

        Conflict if the folder belongs to a job with other parts; the message names them.
        """
        job = {"format": FORMAT, "stage": stage, "parts": dict(parts)}
        fingerprint = hashlib.sha256(canonical(job)).hexdigest()
        data = canonical(job | {"fingerprint": fingerprint})
        try:
            store.put(JOB, data)
        except Conflict as error:
            there = read_json(store, JOB)
            if not accept_fingerprint or there["stage"] != stage:
                raise Conflict(_difference(store, there, job)) from error
            fingerprint = there["fingerprint"]
        return cls(store, stage, fingerprint)

    def manifest(self) -> Manifest | None:
        """The finished job's manifest, None while it is unfinished."""
        return read_json(self.store, MANIFEST, absent=None)

    def marker(self, name: str) -> Marker | None:
        """The marker of the object ``name``, None while it is not done."""
        return read_json(self.store, _marker_key(name), absent=None)

    def put(self, name: str, key: str, data: bytes, facts: Mapping[str, Json]) -> Marker:
        """Stores an object, then its marker, which is returned; where the marker is there already, nothing is written.

        ``facts`` are deterministic JSON: counts, hashes; no clocks, hosts or paths.
        """
        done = self.marker(name)
        if done is not None:
            return done
        self.store.put(key, data)
        marker = {**facts, "key": key, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.store.put(_marker_key(name), canonical(marker))
        return marker

    def put_plain(self, key: str, data: bytes) -> None:
        """Stores an object of the result that needs no marker: a picture, a plan."""
        self.store.put(key, data)

    def finish(self, facts: Mapping[str, Json], *, objects: Iterable[Marker] = ()) -> Manifest:
        """Writes the manifest, the last write, and returns it; ``manifest_objects`` gives the objects back.

        ``objects``: the markers, streamed, in the order the stage wants them listed. They go to one JSON-lines object
        beside the manifest, so that neither writer nor reader holds them all.
        """
        lines = bytearray()
        count = size = 0
        for marker in objects:
            lines += json.dumps(marker, sort_keys=True, separators=(",", ":")).encode() + b"\n"
            count, size = count + 1, size + marker["bytes"]
        listing = bytes(lines)
        job = read_json(self.store, JOB)
        self.store.put(OBJECTS, listing)
        manifest = {
            **facts, **job,
            "listing": {
                "key": OBJECTS, "sha256": hashlib.sha256(listing).hexdigest(), "count": count, "bytes": size,
            },
        }  # fmt: skip
        self.store.put(MANIFEST, canonical(manifest))
        return manifest

    def run(self, facts: Mapping[str, Json]) -> "RunRecord":
        """Begins the record of this run: what may differ between runs of the same job."""
        return RunRecord.start(self.store, facts)


class RunRecord:
    """When, where and how a job ran: ``_runs/<id>/start.json``, events, ``end.json``; a context manager."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.id = run_id
        self._store = store.child(f"_runs/{run_id}")
        self._begin = time.monotonic()

    @classmethod
    def start(cls, store: Store, facts: Mapping[str, Json]) -> Self:
        """Writes ``start.json``: clock, host, hardware, command and the caller's facts."""
        run = cls(store, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}")
        here = {
            "host": platform.node(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "pid": os.getpid(),
        }
        command = {"command": sys.argv, "python": platform.python_version()}
        run._put("start", {**here, **command, **facts})
        return run

    def event(self, name: str, **facts: Json) -> None:
        """Records that something happened, from any process that holds the run."""
        self._put(f"events/{time.time_ns()}-{uuid.uuid4().hex[:4]}", {"event": name, **facts})

    def end(self, **facts: Json) -> None:
        """Writes ``end.json``: seconds and the caller's counts."""
        self._put("end", {"seconds": round(time.monotonic() - self._begin, 3), **facts})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.event("failed", error=f"{type(error).__name__}: {error}")

    def _put(self, name: str, facts: Mapping[str, Json]) -> None:
        self._store.put(f"{name}.json", canonical({"clock": datetime.now(UTC).isoformat(), **facts}))


def read_manifest(place: str | Store, stage: str) -> Manifest:
    """The manifest a consumer starts from: of a finished job of that stage, else NotFound or UserError says why not."""
    store = Store.open(place) if isinstance(place, str) else place
    wanted = _HOLDS.get(stage, stage)
    job = read_json(store, JOB, absent=None)
    if job is None:
        raise NotFound(
            f"{store.uri} holds nothing, where {wanted} ({stage}) are wanted; run ray-dit {stage} first"
        )
    if job["stage"] != stage:
        holds = _HOLDS.get(job["stage"], job["stage"])
        raise UserError(f"{store.uri} holds {holds} ({job['stage']}), where {wanted} ({stage}) are wanted")
    manifest = read_json(store, MANIFEST, absent=None)
    if manifest is None:
        raise UserError(f"{store.uri} is unfinished; run ray-dit {stage} again, it goes on where it stopped")
    return manifest


def manifest_objects(store: Store, manifest: Manifest) -> Iterator[Marker]:
    """The markers of a finished job's objects, streamed in the order they were listed."""
    with store.open_file(manifest["listing"]["key"]) as lines:
        for line in lines:
            yield json.loads(line)


def manifest_sha256(manifest: Manifest) -> str:
    """The manifest's hash, which stands for every byte of the job in the fingerprints of its consumers."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def canonical(value: Json) -> bytes:
    """JSON as it is stored: sorted keys, indented by one, a newline at the end; one text a value."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


_RAISE = object()


def read_json(store: Store, key: str, *, absent: Json = _RAISE) -> Json:
    """A stored JSON value; ``absent`` where there is none, or NotFound without it."""
    try:
        return json.loads(store.get(key))
    except NotFound:
        if absent is _RAISE:
            raise
        return absent


def _marker_key(name: str) -> str:
    return f"_markers/{name}.json"


def _difference(store: Store, there: Json, ours: Json) -> str:
    """The sentence that refuses a job whose folder belongs to another one."""
    if there["stage"] != ours["stage"]:
        return f"{store.uri} belongs to {there['stage']}, not {ours['stage']}; take another output folder"
    old, new = _flat(there["parts"]), _flat(ours["parts"])
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    shown = ", ".join(
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in changed[:6]
    )
    more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
    return (
        f"{store.uri} was begun with other settings ({shown}{more}); take another output folder, go back to those"
        " settings, or, where only library versions differ, add --accept-fingerprint"
    )


def _flat(value: Json, name: str = "") -> dict[str, Json]:
    """Nested settings as dotted names."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    items = cast("dict[str, Json]", value).items()
    return {
        path: leaf for key, child in items for path, leaf in _flat(child, f"{name}.{key}".lstrip(".")).items()
    }
