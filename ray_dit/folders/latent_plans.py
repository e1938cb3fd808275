"""The plans a latents folder keeps, one per generation: stored first and read ever after.

A job reads what its plan lists, whatever has become of the images since; an extension plans what no
generation before it has. Knows nothing of VAEs, actors or settings other than those of the images.
"""

import hashlib
import re
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ray_dit.config import ImagesConfig
from ray_dit.errors import Damaged, NotFound, UserError
from ray_dit.folders.duplicates import duplicates_key, find_duplicates
from ray_dit.folders.images import ImagePlan, list_images
from ray_dit.folders.listing import HERE, ListedBy
from ray_dit.folders.plan_parts import PART_ROWS, AnyPlan, Part, PlanInParts, parts_of, plan_bytes, read_head
from ray_dit.folders.quarantine import earlier_bytes, earlier_key, quarantine_bytes, quarantine_key
from ray_dit.folders.sources import store_of_images
from ray_dit.folders.stored_plans import (
    Planned,
    open_plan,
    part_key,
    plan_key,
    read_plan,
    read_plans,
    with_versions,
)
from ray_dit.formats.image_format import Listing, version_of
from ray_dit.formats.rows import OBJECT, packed
from ray_dit.formats.texts import Texts
from ray_dit.ledger.comparison import RULES
from ray_dit.ledger.description import known_description, newest_begun
from ray_dit.ledger.job import Job
from ray_dit.ledger.plain import MadeAgain
from ray_dit.results import BadImage, LatentShardFacts, LatentsResult
from ray_dit.storage.store import UNKNOWN_SIZE, Store, ahead

LOOKED_AT = 16
"""Images of a stored plan that are looked for where it is read again."""
WAIT_SECONDS = 10.0
"""How long the plan of a job that another driver has just begun is waited for."""
PARTS_SINCE = 3
"""Rules of encode under which plans of many images are stored in parts."""


def generation_of_key(key: str) -> int:
    """Which generation an object belongs to, by its name."""
    named = re.match(r"g(\d+)-", key.rpartition("/")[2])
    return int(named[1]) if named else 0


def begun_plan(store: Store, config: ImagesConfig, by: ListedBy = HERE) -> Planned | None:
    """The plan of the newest generation that was begun and has one; None where there is none.

    One that is missing or damaged is made again of the images, if these are still what it listed; Damaged
    where they are not and something was made by it.
    """
    newest = newest_begun(store)
    # an extension may have been killed between its first write and its plan
    found = (generation_plan(store, config, number, by) for number in range(newest, max(newest - 2, -1), -1))
    return next((planned for planned in found if planned is not None), None)


def await_plan(
    store: Store, config: ImagesConfig, seconds: float = WAIT_SECONDS, by: ListedBy = HERE
) -> Planned | None:
    """As ``begun_plan``, of a job that another driver may have begun just now; None if no plan comes."""
    key, end = plan_key(newest_begun(store)), time.monotonic() + seconds
    while store.head(key) is None and time.monotonic() < end:
        time.sleep(0.2)
    return begun_plan(store, config, by)


def generation_plan(
    store: Store, config: ImagesConfig, generation: int, by: ListedBy = HERE
) -> Planned | None:
    """As ``begun_plan``, of one generation."""
    there = known_description(store, generation)
    if there is None or there.get("stage") != LatentsResult.stage_name:
        return None
    sha256 = str(there["parts"].get("inputs", {}).get("images"))
    rules = int(there["parts"].get(RULES, 1))
    job = Job(store, "", "", generation)
    data = job.plain.first(plan_key(generation)) or b""
    marked = job.plain.sha256(plan_key(generation))
    plan = _parsed(store, generation, data, config.uri, sha256) if data else None
    part_rows = _part_rows(plan, rules)
    if plan is not None and _has_whole_parts(store, generation, plan):
        is_stored = marked is not None and _has_marked_parts(job, plan)
        return Planned(plan, data, generation, rules, is_stored, part_rows)
    again = _made_again(store, config, generation, sha256, rules, by)
    data = b"" if again is None else plan_bytes(again, part_rows)
    if again is not None and marked in (None, hashlib.sha256(data).hexdigest()):
        return Planned(with_versions(store, again, data), data, generation, rules, part_rows=part_rows)
    if marked is not None or any(True for _ in job.names()):
        raise Damaged(
            f"{store.where(plan_key(generation))} is missing or damaged, and the images in {config.uri} as "
            "they are now do not give it again: restore it or them, or take another output folder"
        )
    return None


def made_again(store: Store, config: ImagesConfig, planned: Planned, by: ListedBy = HERE) -> MadeAgain:
    """How the plans and the lists of bad images of this and all earlier generations are made again."""

    @cache
    def of(generation: int) -> Planned | None:
        return planned if generation == planned.generation else generation_plan(store, config, generation, by)

    def plan(generation: int) -> bytes:
        there = of(generation)
        return there.data if there is not None else b""

    def part(generation: int, number: int) -> bytes:
        there = of(generation)
        return there.part_data(store, number) if there is not None else b""

    def bad(generation: int) -> list[BadImage]:
        markers = Job(store, "", "", generation).markers(LatentShardFacts)
        return bad_images(marker.facts for marker in markers)

    def quarantine(generation: int) -> bytes:
        return quarantine_bytes(bad(generation), planned.plan.classes)

    def earlier(generation: int) -> bytes:
        return earlier_bytes(bad(generation))

    def duplicates(generation: int) -> bytes:
        jobs = (Job(store, "", "", number) for number in range(generation + 1))
        return find_duplicates(store, [marker for job in jobs for marker in job.markers(LatentShardFacts)])[1]

    every = range(planned.generation + 1)
    parts = [(number, at) for number in every for at in range(_count_parts(store, number, planned))]
    return {
        **{part_key(number, at): partial(part, number, at) for number, at in parts},
        **{plan_key(number): partial(plan, number) for number in every},
        **{quarantine_key(number): partial(quarantine, number) for number in every},
        **{duplicates_key(number): partial(duplicates, number) for number in every},
        **{earlier_key(number): partial(earlier, number) for number in every},
    }


def _count_parts(store: Store, generation: int, planned: Planned) -> int:
    """How many parts a generation's plan has, by its head, or where that is damaged by their markers."""
    plan = planned.plan
    if generation == planned.generation:
        listed = plan.listed if isinstance(plan, PlanInParts) else [*parts_of(plan, planned.part_rows)]
        return len(listed)
    plain = Job(store, "", "", generation).plain
    with suppress(UserError):
        head = read_head(plain.get(plan_key(generation)), plan.uri)
        return len(head[1]) if head is not None else 0
    return sum(1 for _ in store.list(f"{plain.folder}{part_key(generation, 0).rpartition('/')[0]}/"))


def bad_images(shards: Iterable[LatentShardFacts]) -> list[BadImage]:
    """What these shards have set aside."""
    return [entry for shard in shards for entry in shard.set_aside]


def extension_plan(
    store: Store, config: ImagesConfig, generation: int, by: ListedBy = HERE
) -> ImagePlan | None:
    """The images that no generation before this one has planned; None where there are none.

    Classes that are new are numbered after those there were. UserError where none of the images that were
    planned before, and are there, is as it was.
    """
    earlier = read_plans(store, config.uri)
    listing = list_images(config, by)
    parts = [part for plan in earlier for part in plan.parts()]
    before = listing.keys.rows_in(Texts.joined([part.keys for part in parts]))
    there = np.flatnonzero(before >= 0)
    sizes = np.concatenate([_sizes(part) for part in parts])[before[there]]
    again = (sizes == UNKNOWN_SIZE) | (sizes == listing.sizes[there])
    if len(again) and not again.any():
        raise _others(store, config, len(again))
    rows = np.flatnonzero(before < 0)
    # what lies beside an image may change the name it is given: it is known by its place, too
    if len(rows):
        places = _places(_selected(listing, rows))
        rows = rows[~np.any([places.rows_in(_places(part)) >= 0 for part in parts], axis=0)]
    if not len(rows):
        return None
    return ImagePlan.of(_appended(listing, rows, earlier[-1].classes), config)


def as_found(store: Store, plan: AnyPlan) -> AnyPlan:
    """The plan as it holds for the images where they are now, a few of which are looked for.

    UserError where none of those is there with its planned size: the folder holds the latents of others. In
    a copy, objects have other versions, so that where none has its own, sizes alone are compared.
    """
    images, count = store_of_images(plan.uri), min(plan.count, LOOKED_AT)
    few = plan.take(np.linspace(0, plan.count - 1, count).astype(np.int64))
    planned = _sizes(few).tolist()
    found = ahead(images.head, [few.object_key(row) for row in range(count)])
    there = [
        (row, info)
        for row, info in enumerate(found)
        if info is not None and planned[row] in (UNKNOWN_SIZE, info.size)
    ]
    if not there:
        raise _others(store, plan, count)
    if few.versions is None or any(
        version_of(images, info) in (0, few.versions[row]) or not few.versions[row] for row, info in there
    ):
        return plan
    return plan.by_size()


def _others(store: Store, images: ImagesConfig | AnyPlan, count: int) -> UserError:
    return UserError(
        f"{store.uri} holds the latents of other images than those in {images.uri}, where none of {count} "
        "that were looked for is as it was: give the folder they are in as --images.uri, or take another "
        "--output"
    )


def _parsed(store: Store, generation: int, data: bytes, uri: str, sha256: str) -> AnyPlan | None:
    """The plan of the images that the hash stands for; None where the bytes are something else."""
    try:
        plan = open_plan(store, generation, data, uri)
    except UserError:
        return None
    return plan if plan.sha256 == sha256 else None


def _has_whole_parts(store: Store, generation: int, plan: AnyPlan) -> bool:
    """Whether all parts of a plan are there and hold what its head says."""

    def is_whole(number: int, part: Part) -> bool:
        try:
            return store.sha256(part_key(generation, number)) == part.sha256
        except NotFound:
            return False

    return all(ahead(lambda item: is_whole(*item), enumerate(_listed(plan))))


def _has_marked_parts(job: Job, plan: AnyPlan) -> bool:
    keys = [part_key(job.generation, number) for number in range(len(_listed(plan)))]
    return all(sha256 is not None for sha256 in ahead(job.plain.sha256, keys))


def _listed(plan: AnyPlan) -> tuple[Part, ...]:
    """The parts it lies in; none where it is one object."""
    return plan.listed if isinstance(plan, PlanInParts) else ()


def _part_rows(plan: AnyPlan | None, rules: int) -> int:
    """Images of a part, where a plan of these rules is made again."""
    if isinstance(plan, PlanInParts):
        return plan.listed[0].rows
    return PART_ROWS if rules >= PARTS_SINCE else sys.maxsize


def _made_again(
    store: Store, config: ImagesConfig, generation: int, sha256: str, rules: int, by: ListedBy
) -> ImagePlan | None:
    """The plan of a generation as the images give it now; None where they give another one."""
    others = [number for number in range(newest_begun(store) + 1) if number != generation]
    try:
        plans = [read_plan(store, other, config.uri) for other in others]
        elsewhere = [part.keys for plan in plans for part in plan.parts()]
    except (NotFound, Damaged):
        return None
    listing = list_images(config, by)
    rows = np.arange(len(listing.keys))
    if elsewhere:
        rows = np.flatnonzero(listing.keys.rows_in(Texts.joined(elsewhere)) < 0)
    before = plans[generation - 1].classes if generation else ()
    plan = ImagePlan.of(_appended(listing, rows, before), config)
    if rules == 1:
        plan = replace(plan, sizes=None)
    return plan if plan.sha256 == sha256 else None


def _appended(listing: Listing, rows: NDArray[np.int64], before: tuple[str, ...]) -> Listing:
    """Some rows of a listing, with the classes they add after those there were."""
    if not before and len(rows) == len(listing.keys):
        return listing  # with classes of which there is no image, too
    labels = listing.labels[rows]
    present: list[int] = np.unique(labels).tolist()
    used = {listing.classes[label] for label in present}
    classes = (*before, *(name for name in listing.classes if name in used and name not in before))
    number = {name: label for label, name in enumerate(classes)}
    numbers = np.array([number.get(name, -1) for name in listing.classes], np.int64)
    return replace(_selected(listing, rows), labels=numbers[labels], classes=classes)


def _selected(listing: Listing, rows: NDArray[np.int64]) -> Listing:
    """Some rows of a listing."""
    return replace(
        listing,
        keys=listing.keys[rows],
        labels=listing.labels[rows],
        sizes=listing.sizes[rows],
        versions=listing.versions[rows],
        places={name: column[rows] for name, column in listing.places.items()},
    )


def _sizes(plan: ImagePlan) -> NDArray[np.int64]:
    return np.full(plan.count, UNKNOWN_SIZE, np.int64) if plan.sizes is None else plan.sizes


def _places(images: ImagePlan | Listing) -> Texts:
    """Where each image lies: its object, in which size and version, and what says where in it."""
    objects = packed(images.places[OBJECT]) if OBJECT in images.places else images.keys
    count = len(images.keys)
    sizes = np.full(count, UNKNOWN_SIZE, np.int64) if images.sizes is None else images.sizes
    versions = np.zeros(count, np.int64) if images.versions is None else images.versions
    columns = [images.places[name] for name in sorted(images.places) if name != OBJECT]
    return Texts.of(
        "\0".join(map(str, place))
        for first in range(0, count, PART_ROWS)
        for place in zip(
            *(column[first : first + PART_ROWS].tolist() for column in (objects, sizes, versions, *columns)),
            strict=True,
        )
    )
