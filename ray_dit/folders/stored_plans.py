"""Plans as they lie in a latents folder: one object or several, and beside them in which versions.

Knows nothing of how a plan comes about, nor of which one counts.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from ray_dit.errors import Conflict, Damaged, NotFound, UserError
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.plan_parts import (
    PART_ROWS,
    AnyPlan,
    Part,
    PlanInParts,
    head_bytes,
    listed_as,
    parts_of,
    plan_bytes,
    read_head,
)
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_tag, last_generation
from ray_dit.ledger.restore import read_whole
from ray_dit.storage.store import Store

_log = logging.getLogger(__name__)

PARTS_KEPT = 4
"""Parts of a plan that a process keeps: shards under way at once may lie in several."""


def plan_key(generation: int = 0) -> str:
    """Where the plan of a generation lies, or the head of its parts: actors read it, and the report."""
    return f"plan{generation_tag(generation)}.parquet"


def part_key(generation: int, number: int) -> str:
    """Where a part of a generation's plan lies."""
    return f"plan{generation_tag(generation)}/{number:05d}.parquet"


def versions_key(sha256: str) -> str:
    """Where it is noted in which versions the objects of a plan or part of this hash were found.

    Beside the results, as it depends on where the images lie: a plan is the same for the same images.
    """
    return f"_runs/versions/{sha256[:16]}.parquet"


@dataclass(frozen=True)
class Planned:
    """The plan of one generation, as it is stored or shall be."""

    plan: AnyPlan
    data: bytes
    """Of its one object, or of its head."""
    generation: int = 0
    rules: int | None = None
    """Those the generation was begun under; None before it begins."""
    is_stored: bool = False
    """Whether it lies in the folder, with its marker, and so do its parts."""
    part_rows: int = PART_ROWS

    @classmethod
    def new(cls, plan: ImagePlan, generation: int = 0, part_rows: int = PART_ROWS) -> "Planned":
        """Of images that were just listed."""
        return cls(plan, plan_bytes(plan, part_rows), generation, part_rows=part_rows)

    def stored(self, job: Job) -> "Planned":
        """Stores the plan, or takes the one that another driver of the job has stored before.

        Its parts come first, so that it is whole where its head is. They follow from what the job's
        fingerprint stands for: where another version of a library has stored one, its rows are the same.
        """
        listed: list[Part] = []
        for number, (part, data) in enumerate(self._parts(job.store)):
            key = part_key(self.generation, number)
            job.plain.put(key, data)
            listed.append(_as_stored(job, key, listed_as(part, data)))
            _note_versions(job.store, part, listed[-1].sha256)
        ours = head_bytes(_first(self.plan), listed) if listed else self.data
        data = job.plain.put_first(plan_key(self.generation), ours)
        if isinstance(self.plan, ImagePlan) and not listed:
            _note_versions(job.store, self.plan, hashlib.sha256(data).hexdigest())
        return replace(self, plan=open_plan(job.store, self.generation, data, self.plan.uri), data=data)

    def part_data(self, store: Store, number: int) -> bytes:
        """The bytes of a part; empty where there is no such part."""
        if isinstance(self.plan, PlanInParts):
            return store.get(part_key(self.generation, number))
        part = self.plan.part(number * self.part_rows, (number + 1) * self.part_rows)
        return part.to_bytes() if part.count else b""

    def stored_bytes(self) -> int:
        """Bytes of all its objects."""
        if isinstance(self.plan, PlanInParts):
            return len(self.data) + sum(part.bytes for part in self.plan.listed)
        return len(self.data) + sum(len(part.to_bytes()) for part in parts_of(self.plan, self.part_rows))

    def _parts(self, store: Store) -> Iterator[tuple[ImagePlan, bytes]]:
        if isinstance(self.plan, ImagePlan):
            return ((part, part.to_bytes()) for part in parts_of(self.plan, self.part_rows))
        return ((part, self.part_data(store, number)) for number, part in enumerate(self.plan.parts()))


def read_plan(store: Store, generation: int, uri: str) -> AnyPlan:
    """A generation's plan, of the images at ``uri``; NotFound, and UserError where it is damaged.

    One in parts is read as it is used, which may raise them too.
    """
    return open_plan(store, generation, Job(store, "", "", generation).plain.get(plan_key(generation)), uri)


def read_plans(store: Store, uri: str) -> list[AnyPlan]:
    """The plans of all finished generations, the oldest first; errors as ``read_plan``."""
    return [read_plan(store, generation, uri) for generation in range(last_generation(store) + 1)]


def open_plan(store: Store, generation: int, data: bytes, uri: str) -> AnyPlan:
    """The plan whose object, or head, holds these bytes; UserError where they are something else."""
    head = read_head(data, uri)
    if head is None:
        return with_versions(store, ImagePlan.from_bytes(data, uri), data)
    empty, listed = head

    @lru_cache(maxsize=PARTS_KEPT)
    def read(number: int) -> ImagePlan:
        part, key = listed[number], part_key(generation, number)
        plan = ImagePlan.from_bytes(read_whole(store, key, part.sha256), uri)
        if (plan.count, plan.sha256) != (part.rows, empty.sha256):
            raise Damaged(f"{store.where(key)} is a part of another plan: restore it from a copy")
        return _noted_versions(store, plan, part.sha256)

    return PlanInParts(empty, listed, read)


def _note_versions(store: Store, plan: ImagePlan, sha256: str) -> None:
    """Notes the versions of the objects of a plan, or of a part, that is stored in bytes of this hash."""
    versions = plan.versions_bytes()
    if versions is not None:
        with suppress(Conflict):
            store.put(versions_key(sha256), versions)


def with_versions(store: Store, plan: ImagePlan, data: bytes) -> ImagePlan:
    """The plan whose bytes these are, with the versions noted for it, if any are."""
    return _noted_versions(store, plan, hashlib.sha256(data).hexdigest())


def _noted_versions(store: Store, plan: ImagePlan, sha256: str) -> ImagePlan:
    try:
        return plan.with_versions(store.get(versions_key(sha256)))
    except NotFound:
        return plan
    except UserError as error:
        _log.warning("%s; until then objects are known by their sizes alone", error)
        return plan.by_size()


def _as_stored(job: Job, key: str, ours: Part) -> Part:
    """What lies at the key of a part: ours, or what was stored there before, by its marker."""
    sha256 = job.plain.sha256(key)
    if sha256 in (None, ours.sha256):
        return ours
    info = job.store.head(key)
    return Part(ours.rows, info.size if info is not None else ours.bytes, str(sha256))


def _first(plan: AnyPlan) -> ImagePlan:
    """What a plan says beside its rows."""
    return plan if isinstance(plan, ImagePlan) else plan.empty
