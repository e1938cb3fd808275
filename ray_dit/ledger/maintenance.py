"""Verify, repair and clean finished or unfinished jobs.

Knows the protocol's objects and nothing of what they hold.

Everything is streamed: memory is bounded by the objects in flight, whatever their number.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ray_dit.errors import NotFound, UserError
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import job_key, last_generation, manifest_key, manifest_objects
from ray_dit.ledger.results import Facts, Marker
from ray_dit.ledger.stored_json import canonical, read_json
from ray_dit.storage.open import open_store
from ray_dit.storage.s3 import PROBES
from ray_dit.storage.store import Store, ahead

HOUR = 3600.0


@dataclass(frozen=True)
class Problem:
    """Something in a job that is not what the job says."""

    store: Store
    """The job's folder."""
    key: str
    what: str
    """``missing``, ``damaged``, or a sentence."""
    marker: Marker[Facts] | None
    """What the object should be; None for the protocol's own objects."""

    def __str__(self) -> str:
        return f"{self.store.where(self.key)}: {self.what}"


@dataclass
class Tally:
    """What a verification has gone through so far."""

    jobs: int = 0
    objects: int = 0
    bytes: int = 0


def jobs(store: Store) -> Iterator[Store]:
    """The folders of the jobs at and below ``store``: a training run, say, and the model in it."""
    first = job_key(0)
    for info in store.list():
        if info.key == first:
            yield store
        elif info.key.endswith(f"/{first}"):
            yield store.child(info.key.removesuffix(f"/{first}"))


def verify(store: Store, *, tally: Tally | None = None, threads: int = 8) -> Iterator[Problem]:
    """Reads every object of the jobs at and below ``store`` anew; yields what is missing or differs.

    A finished job is held against its listings, an unfinished one against its markers. NotFound if no job is
    there.
    """
    tally = tally or Tally()
    for folder in jobs(store):
        tally.jobs += 1
        yield from _verify_folder(folder, tally, threads)
    if not tally.jobs:
        raise NotFound(f"{store.uri} holds no job of ray-dit: check the path")


def verify_all(uri: str, *, tell: Callable[[Problem], None]) -> str:
    """Verifies the jobs at and below ``uri`` and reports each problem.

    Returns a sentence where all is whole, else raises UserError.
    """
    tally, problems = Tally(), 0
    for problem in verify(open_store(uri), tally=tally):
        problems += 1
        tell(problem)
    if problems:
        raise UserError(
            f"{problems} of the objects in {uri} are missing or damaged: run encode or generate again with "
            "--repair; what another stage made, restore, or delete its folder and run it again"
        )
    found = f"{tally.objects} objects, {tally.bytes / 1e6:.1f} MB in {tally.jobs} jobs"
    return f"verified: {found} at {uri} are whole"


def repair(
    store: Store, rebuild: Callable[[Store, Marker[Facts]], bytes], *, threads: int = 8
) -> Iterator[Problem]:
    """Makes the objects ``verify`` complains of anew and puts them in place; yields each as it is done.

    ``rebuild(folder, marker)`` returns an object's bytes; it is a pure function of the job, so they must have
    the hash the marker promises, else UserError. A damaged object is replaced only if it is still the one
    that was looked at.
    """
    for problem in verify(store, threads=threads):
        if problem.marker is None:
            raise UserError(
                f"{problem}: this is no shard; delete manifest.json and that object, and run the stage again"
            )
        _put_back(problem, problem.marker, rebuild(problem.store, problem.marker))
        yield problem


def gc(store: Store, *, older_than: float = HOUR) -> Iterator[str]:
    """Removes what killed processes left (temp files, unfinished uploads, probes) and says what.

    Only what is older than ``older_than`` seconds goes, so that work in progress stays. Objects without a
    marker stay too: the job's next run takes them up.
    """
    yield from store.clean(older_than)
    for info in store.list(PROBES):
        if int(info.key.removeprefix(PROBES).partition("-")[0]) < time.time() - older_than:
            store.delete(info.key)
            yield store.where(info.key)


def gc_all(uri: str, *, older_than: float, tell: Callable[[str], None]) -> str:
    """As ``gc`` at ``uri``, reporting each thing removed; a sentence on how many.

    NotFound where nothing is at all.
    """
    store, removed = open_store(uri), 0
    for what in gc(store, older_than=older_than):
        removed += 1
        tell(f"removed {what}")
    if not removed and next(store.list(), None) is None:
        raise NotFound(f"nothing is at {uri}: check the path")
    return f"removed: {removed} leftovers at {uri}"


def abandon(store: Store) -> Iterator[str]:
    """Removes an extension that was begun and will not be finished, and says what.

    What it extends is untouched.

    UserError if there is none. (A first generation that is not wanted is a folder to delete.)
    """
    job = _begun_extension(store)
    for info in store.list():
        if info.key.rpartition("/")[2].startswith(job.prefix) or info.key.startswith(
            f"_markers-{job.prefix[:-1]}/"
        ):
            store.delete(info.key)
            yield store.where(info.key)
    store.delete(job_key(job.generation))
    yield store.where(job_key(job.generation))


def _begun_extension(store: Store) -> Job:
    generation = last_generation(store) + 1
    there = read_json(store, job_key(generation), absent=None)
    if there is None:
        raise UserError(f"{store.uri} has no unfinished extension: nothing to abandon")
    return Job(store, there["stage"], there["fingerprint"], generation)


def _verify_folder(folder: Store, tally: Tally, threads: int) -> Iterator[Problem]:
    """One job, all its generations: the protocol's own objects, then the others, several at a time."""
    own = [
        problem for number in range(last_generation(folder) + 1) for problem in _verify_job(folder, number)
    ]
    yield from own

    def check(marker: Marker[Facts]) -> tuple[Marker[Facts], Problem | None]:
        found = _hash(folder, marker.key)
        what = "missing" if found is None else "damaged"
        return marker, None if found == marker.sha256 else Problem(folder, marker.key, what, marker)

    for marker, problem in ahead(check, _expected(folder, whole=not own), threads=threads):
        tally.objects, tally.bytes = tally.objects + 1, tally.bytes + marker.bytes
        if problem is not None:
            yield problem


def _verify_job(folder: Store, generation: int) -> Iterator[Problem]:
    """A generation's fingerprint, manifest and listing."""
    job = read_json(folder, job_key(generation))
    parts = {name: value for name, value in job.items() if name != "fingerprint"}
    if hashlib.sha256(canonical(parts)).hexdigest() != job["fingerprint"]:
        yield Problem(folder, job_key(generation), "its parts do not have its fingerprint", None)
    manifest = read_json(folder, manifest_key(generation), absent=None)
    if manifest is None:
        return
    if any(manifest.get(name) != value for name, value in job.items()):
        yield Problem(folder, manifest_key(generation), "it is another job's", None)
    listing = manifest["listings"][-1]
    found = _hash(folder, listing["key"])
    if found != listing["sha256"]:
        yield Problem(folder, listing["key"], "missing" if found is None else "damaged", None)


def _expected(folder: Store, *, whole: bool) -> Iterator[Marker[Facts]]:
    """The markers of a job's objects.

    Those its newest manifest lists if that is whole, else those that are there.
    """
    generation = last_generation(folder)
    there = read_json(folder, job_key(generation))
    job = Job(folder, there["stage"], there["fingerprint"], generation)
    manifest = job.manifest(Facts) if whole else None
    return manifest_objects(folder, manifest, Facts) if manifest is not None else job.markers(Facts)


def _hash(folder: Store, key: str) -> str | None:
    try:
        return folder.sha256(key)
    except NotFound:
        return None


def _put_back(problem: Problem, marker: Marker[Facts], data: bytes) -> None:
    folder, key = problem.store, problem.key
    if hashlib.sha256(data).hexdigest() != marker.sha256:
        raise UserError(
            f"{folder.where(key)} cannot be repaired here, because this machine makes other bytes of it: "
            "repair it on the kind of machine and with the versions (of ray-dit and its libraries) it was "
            "made with"
        )
    info = folder.head(key)
    if info is None:
        folder.put(key, data)
    elif folder.sha256(key) != marker.sha256:
        folder.replace(key, data, if_match=info.etag or "")
