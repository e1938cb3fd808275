"""Verify, repair and clean finished or unfinished jobs.

Knows the protocol's objects and nothing of what they hold.

Everything is streamed: memory is bounded by the objects in flight, whatever their number.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from ray_dit.errors import Damaged, NotFound, UserError
from ray_dit.ledger.description import newest_begun
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_tag, job_key, last_generation
from ray_dit.ledger.plain import MadeAgain
from ray_dit.ledger.restore import overwrite, put_back, put_file_back
from ray_dit.ledger.results import Facts, Marker
from ray_dit.ledger.stored_json import read_json
from ray_dit.ledger.verification import Problem, Results, Tally, verify_job
from ray_dit.ledger.writers import WRITERS
from ray_dit.storage.open import open_store
from ray_dit.storage.s3 import PROBES
from ray_dit.storage.store import Store

HOUR = 3600.0

Rebuild = Callable[[Store, Marker[Facts]], Mapping[str, bytes] | None]
"""The objects a marker stands for by key, from its folder; None where they can't be made again."""

_WAYS = {
    "encode": "run ray-dit encode again with --repair",
    "generate": "run ray-dit generate again with --repair",
    "evaluate": "run ray-dit evaluate again",
    "train-vae": "run ray-dit train-vae again, which makes the VAE anew from its last checkpoint, and "
    "restore a damaged checkpoint from a copy",
    "train": "run ray-dit train again with the steps it was made with, which makes the model and loss.jsonl "
    "anew from the last checkpoint, and restore a checkpoint or sample grid from a copy: nothing needs those "
    "of a finished training",
    "model": "run the ray-dit train or import-checkpoint again that made it",
}
"""What to do about a damaged folder, by its stage."""


def jobs(store: Store) -> Iterator[Store]:
    """The folders of the jobs at and below ``store``: a training run, say, and the model in it."""
    first = job_key(0)
    for info in store.list():
        if info.key == first:
            yield store
        elif info.key.endswith(f"/{first}"):
            yield store.child(info.key.removesuffix(f"/{first}"))


def verify(
    store: Store, *, tally: Tally | None = None, results: Results | None = None, threads: int = 8
) -> Iterator[Problem]:
    """Reads every object of the jobs at and below ``store`` anew; yields what is missing or damaged.

    A finished job is held against its listings, an unfinished one, which is a problem too, against its
    markers, and the numbers in a manifest against ``results``. NotFound if no job is there.
    """
    tally = tally or Tally()
    for folder in jobs(store):
        tally.jobs += 1
        yield from verify_job(folder, tally, results or {}, threads=threads)
    if not tally.jobs:
        raise NotFound(f"{store.uri} holds no job of ray-dit: check the path")


def verify_all(uri: str, results: Results, *, tell: Callable[[Problem], None]) -> str:
    """Verifies the jobs at and below ``uri`` and reports each problem.

    Returns a sentence where all is whole and finished, else raises UserError.
    """
    tally, problems, ways = Tally(), 0, dict[str, str]()
    for problem in verify(open_store(uri), tally=tally, results=results):
        problems += 1
        tell(problem)
        if not problem.is_unfinished and not problem.key.startswith(("_runs/", "_accepted/")):
            ways.setdefault(stage_of(problem.store), problem.store.uri)
    if ways:
        todo = "; ".join(f"for {where}, {_WAYS.get(stage, RESTORE)}" for stage, where in ways.items())
        raise UserError(f"{problems} of the objects in {uri} are missing or damaged: {todo}")
    if problems:
        raise UserError(f"{uri} is not whole: do what is said of the {problems} objects above")
    found = f"{tally.objects} objects, {tally.bytes / 1e6:.1f} MB in {tally.jobs} jobs"
    return f"verified: {found} at {uri} are whole"


RESTORE = "restore it from a copy, or delete it and run its stage again"


def stage_of(folder: Store) -> str:
    """The stage a folder belongs to; "" where its description is damaged."""
    try:
        return str(read_json(folder, job_key(0)).get("stage"))
    except UserError:
        return ""


def repair(
    store: Store,
    rebuild: Rebuild,
    plain: MadeAgain | None = None,
    *,
    results: Results | None = None,
    threads: int = 8,
) -> Iterator[Problem]:
    """Makes what ``verify`` complains of anew and puts it in place; yields each as it is done.

    ``rebuild(folder, marker)`` returns what a marker stands for, ``plain`` the bytes of plain objects by key.
    Those come first, since makers of the others read them, and once more last, where they are made of others.
    Both are pure functions of the job, so the bytes must have the hash the marker promises. A damaged object
    is replaced only if it is still the one that was looked at. A damaged manifest or marker that nothing
    repeats is removed, and listings are left, for the stage to make again. UserError at the end if something
    can't be made again.
    """
    made_again = plain or {}
    with suppress(Damaged, NotFound):  # of what a plain object is made of, which is put right below
        yield from _restore_plain(store, made_again)
    lost: list[str] = []
    whole: Marker[Facts] | None = None  # what it lists is put right together
    for problem in verify(store, results=results, threads=threads):
        if problem.store.uri == store.uri and problem.key in made_again:
            continue
        try:
            if (problem.marker is not None and problem.marker == whole) or _put_right(problem, rebuild):
                whole = problem.marker
                yield problem
        except UserError as error:
            lost.append(str(error))
    try:
        yield from _restore_plain(store, made_again)
    except UserError as error:
        lost.append(str(error))
    if lost:
        more = f" (and {len(lost) - 1} objects more)" if len(lost) > 1 else ""
        raise UserError(f"{lost[0]}{more}")


def _restore_plain(store: Store, made_again: MadeAgain) -> Iterator[Problem]:
    """Puts back those plain objects that are missing or damaged and can be made again."""
    for generation in {last_generation(store), newest_begun(store)}:
        for key in Job(store, "", "", generation).restore_plain(made_again):
            yield Problem(store, key, "damaged")


def _put_right(problem: Problem, rebuild: Rebuild) -> bool:
    """Whether something was done about it; UserError where nothing can be."""
    folder, key, marker = problem.store, problem.key, problem.marker
    if problem.is_unfinished:
        return False
    if marker is not None:
        made = rebuild(folder, marker)
        if made is None:
            raise UserError(f"{problem}: it can't be made again here; restore it from a copy")
        put_back(folder, marker.key, made[marker.key], marker.sha256)
        for file, data in made.items():
            if file != marker.key:
                put_file_back(folder, file, data)
    elif problem.data is not None:
        overwrite(folder, key, problem.data)
    elif key.endswith(".jsonl"):  # a listing
        return False
    elif key.startswith(("_markers", "_plain", "_runs/", "_accepted/", "manifest")):
        folder.delete(key)
    else:
        raise UserError(f"{problem}; restore it from a copy")
    return True


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
    tag = generation_tag(job.generation)
    notes = (f"_markers{tag}/", f"_plain{tag}/", f"{WRITERS}{tag}/")
    for info in store.list():
        # what its machines made, too: another extension of this number may make other bytes
        name = info.key.rpartition("/")[2]
        of_it = name.startswith(job.prefix) or name.partition(".")[0].endswith(tag)
        if (of_it or info.key.startswith(notes)) and info.key != job_key(job.generation):
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
