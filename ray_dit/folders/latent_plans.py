"""The plans a latents folder keeps, one per generation: stored first and read ever after.

A job reads what its plan lists, whatever has become of the images since; an extension plans what no
generation before it has. Knows nothing of VAEs, actors or settings other than those of the images.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_dit.config import ImagesConfig
from ray_dit.errors import Conflict, Damaged, NotFound, UserError
from ray_dit.folders.images import ImagePlan, list_images
from ray_dit.folders.quarantine import earlier_bytes, earlier_key, quarantine_bytes, quarantine_key
from ray_dit.folders.sources import store_of_images
from ray_dit.formats.image_format import Listing, version_of
from ray_dit.formats.rows import OBJECT
from ray_dit.ledger.comparison import RULES
from ray_dit.ledger.description import known_description, newest_begun
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_tag, last_generation
from ray_dit.ledger.plain import MadeAgain
from ray_dit.results import BadImage, LatentShardFacts, LatentsResult
from ray_dit.storage.store import UNKNOWN_SIZE, Store, ahead

_log = logging.getLogger(__name__)

LOOKED_AT = 16
"""Images of a stored plan that are looked for where it is read again."""
WAIT_SECONDS = 10.0
"""How long the plan of a job that another driver has just begun is waited for."""


def plan_key(generation: int = 0) -> str:
    """Where the plan of a generation lies: its actors read it, and so does the report."""
    return f"plan{generation_tag(generation)}.parquet"


def versions_key(plan: bytes) -> str:
    """Where it is noted in which versions the objects of a plan were found.

    Beside the results, as it depends on where the images lie: a plan is the same for the same images.
    """
    return f"_runs/versions/{hashlib.sha256(plan).hexdigest()[:16]}.parquet"


def generation_of_key(key: str) -> int:
    """Which generation an object belongs to, by its name."""
    named = re.match(r"g(\d+)-", key.rpartition("/")[2])
    return int(named[1]) if named else 0


@dataclass(frozen=True)
class Planned:
    """The plan of one generation, as it is stored or shall be."""

    plan: ImagePlan
    data: bytes
    generation: int = 0
    rules: int | None = None
    """Those the generation was begun under; None before it begins."""
    is_stored: bool = False
    """Whether it lies in the folder, with its marker."""

    @classmethod
    def new(cls, plan: ImagePlan, generation: int = 0) -> "Planned":
        """Of images that were just listed."""
        return cls(plan, plan.to_bytes(), generation)

    def stored(self, job: Job) -> "Planned":
        """Stores the plan, or takes the one that another driver of the job has stored before."""
        uri, sha256 = self.plan.uri, self.plan.sha256
        data = job.plain.put_first(plan_key(self.generation), self.data)
        plan = self.plan if data == self.data else _parsed(data, uri, sha256)
        assert plan is not None, "what is stored has its marker's hash"
        versions = plan.versions_bytes()
        if versions is not None:
            with suppress(Conflict):
                job.store.put(versions_key(data), versions)
        return replace(self, plan=_with_versions(job.store, plan, data), data=data)


def read_plan(store: Store, generation: int, uri: str) -> ImagePlan:
    """A generation's plan, of the images at ``uri``; NotFound, and UserError where it is damaged."""
    data = Job(store, "", "", generation).plain.get(plan_key(generation))
    return _with_versions(store, ImagePlan.from_bytes(data, uri), data)


def read_plans(store: Store, uri: str) -> list[ImagePlan]:
    """The plans of all finished generations, the oldest first; errors as ``read_plan``."""
    return [read_plan(store, generation, uri) for generation in range(last_generation(store) + 1)]


def begun_plan(store: Store, config: ImagesConfig) -> Planned | None:
    """The plan of the newest generation that was begun and has one; None where there is none.

    One that is missing or damaged is made again of the images, if these are still what it listed; Damaged
    where they are not and something was made by it.
    """
    newest = newest_begun(store)
    # an extension may have been killed between its first write and its plan
    found = (generation_plan(store, config, number) for number in range(newest, max(newest - 2, -1), -1))
    return next((planned for planned in found if planned is not None), None)


def await_plan(store: Store, config: ImagesConfig, seconds: float = WAIT_SECONDS) -> Planned | None:
    """As ``begun_plan``, of a job that another driver may have begun just now; None if no plan comes."""
    key, end = plan_key(newest_begun(store)), time.monotonic() + seconds
    while store.head(key) is None and time.monotonic() < end:
        time.sleep(0.2)
    return begun_plan(store, config)


def generation_plan(store: Store, config: ImagesConfig, generation: int) -> Planned | None:
    """As ``begun_plan``, of one generation."""
    there = known_description(store, generation)
    if there is None or there.get("stage") != LatentsResult.stage_name:
        return None
    sha256 = str(there["parts"].get("inputs", {}).get("images"))
    rules = int(there["parts"].get(RULES, 1))
    job = Job(store, "", "", generation)
    data = job.plain.first(plan_key(generation)) or b""
    marked = job.plain.sha256(plan_key(generation))
    plan = _parsed(data, config.uri, sha256) if data else None
    is_stored = plan is not None and marked is not None
    if plan is None:
        plan = _made_again(store, config, generation, sha256, rules)
        data = b"" if plan is None else plan.to_bytes()
    if plan is not None and marked in (None, hashlib.sha256(data).hexdigest()):
        return Planned(_with_versions(store, plan, data), data, generation, rules, is_stored)
    if marked is not None or any(True for _ in job.names()):
        raise Damaged(
            f"{store.where(plan_key(generation))} is missing or damaged, and the images in {config.uri} as "
            "they are now do not give it again: restore it or them, or take another output folder"
        )
    return None


def made_again(store: Store, config: ImagesConfig, planned: Planned) -> MadeAgain:
    """How the plans and the lists of bad images of this and all earlier generations are made again."""

    def plan(generation: int) -> bytes:
        if generation == planned.generation:
            return planned.data
        there = generation_plan(store, config, generation)
        return there.data if there is not None else b""

    def bad(generation: int) -> list[BadImage]:
        markers = Job(store, "", "", generation).markers(LatentShardFacts)
        return bad_images(marker.facts for marker in markers)

    def quarantine(generation: int) -> bytes:
        return quarantine_bytes(bad(generation), planned.plan.classes)

    every = range(planned.generation + 1)
    return {
        **{plan_key(number): _calling(plan, number) for number in every},
        **{quarantine_key(number): _calling(quarantine, number) for number in every},
        **{earlier_key(number): _calling(lambda n: earlier_bytes(bad(n)), number) for number in every},
    }


def bad_images(shards: Iterable[LatentShardFacts]) -> list[BadImage]:
    """What these shards have set aside."""
    return [entry for shard in shards for entry in shard.set_aside]


def extension_plan(store: Store, config: ImagesConfig, generation: int) -> ImagePlan | None:
    """The images that no generation before this one has planned; None where there are none.

    Classes that are new are numbered after those there were. UserError where none of the images that were
    planned before, and are there, is as it was.
    """
    earlier = read_plans(store, config.uri)
    listing = list_images(config)
    known = {key: size for plan in earlier for key, size in zip(plan.keys, _sizes(plan), strict=True)}
    again = [
        known[key] in (UNKNOWN_SIZE, size)
        for key, size in zip(listing.keys, listing.sizes.tolist(), strict=True)
        if key in known
    ]
    if again and not any(again):
        raise _others(store, config, len(again))
    # what lies beside an image may change the name it is given: it is known by its place, too
    places = {place for plan in earlier for place in _places(plan)}
    found = zip(listing.keys, _places(ImagePlan.of(listing, config)), strict=True)
    rows = [row for row, (key, place) in enumerate(found) if key not in known and place not in places]
    if not rows:
        return None
    return ImagePlan.of(_appended(listing, rows, earlier[-1].classes), config)


def as_found(store: Store, plan: ImagePlan) -> ImagePlan:
    """The plan as it holds for the images where they are now, a few of which are looked for.

    UserError where none of those is there with its planned size: the folder holds the latents of others. In
    a copy, objects have other versions, so that where none has its own, sizes alone are compared.
    """
    images, planned = store_of_images(plan.uri), _sizes(plan)
    count = min(len(planned), LOOKED_AT)
    rows: list[int] = np.linspace(0, len(planned) - 1, count).astype(np.int64).tolist()
    found = ahead(images.head, [plan.object_key(row) for row in rows])
    there = [
        (row, info)
        for row, info in zip(rows, found, strict=True)
        if info is not None and planned[row] in (UNKNOWN_SIZE, info.size)
    ]
    if not there:
        raise _others(store, plan, count)
    if plan.versions is None or any(
        version_of(images, info) in (0, plan.versions[row]) or not plan.versions[row] for row, info in there
    ):
        return plan
    return plan.by_size()


def _others(store: Store, images: ImagesConfig | ImagePlan, count: int) -> UserError:
    return UserError(
        f"{store.uri} holds the latents of other images than those in {images.uri}, where none of {count} "
        "that were looked for is as it was: give the folder they are in as --images.uri, or take another "
        "--output"
    )


def _with_versions(store: Store, plan: ImagePlan, data: bytes) -> ImagePlan:
    """The plan whose bytes these are, with the versions noted for it, if any are."""
    try:
        return plan.with_versions(store.get(versions_key(data)))
    except NotFound:
        return plan
    except UserError as error:
        _log.warning("%s; until then objects are known by their sizes alone", error)
        return plan.by_size()


def _parsed(data: bytes, uri: str, sha256: str) -> ImagePlan | None:
    """The plan of the images that the hash stands for; None where the bytes are something else."""
    try:
        plan = ImagePlan.from_bytes(data, uri)
    except UserError:
        return None
    return plan if plan.sha256 == sha256 else None


def _made_again(
    store: Store, config: ImagesConfig, generation: int, sha256: str, rules: int
) -> ImagePlan | None:
    """The plan of a generation as the images give it now; None where they give another one."""
    others = [number for number in range(newest_begun(store) + 1) if number != generation]
    try:
        plans = [read_plan(store, other, config.uri) for other in others]
    except (NotFound, Damaged):
        return None
    listing = list_images(config)
    elsewhere = {key for plan in plans for key in plan.keys}
    rows = [row for row, key in enumerate(listing.keys) if key not in elsewhere]
    before = plans[generation - 1].classes if generation else ()
    plan = ImagePlan.of(_appended(listing, rows, before), config)
    if rules == 1:
        plan = replace(plan, sizes=None)
    return plan if plan.sha256 == sha256 else None


def _appended(listing: Listing, rows: Sequence[int], before: tuple[str, ...]) -> Listing:
    """Some rows of a listing, with the classes they add after those there were."""
    if not before and len(rows) == len(listing.keys):
        return listing  # with classes of which there is no image, too
    at = np.array(rows, np.int64)
    used = {listing.classes[int(label)] for label in listing.labels[at]}
    classes = (*before, *(name for name in listing.classes if name in used and name not in before))
    number = {name: label for label, name in enumerate(classes)}
    return replace(
        listing,
        keys=tuple(listing.keys[row] for row in rows),
        labels=np.array([number[listing.classes[int(label)]] for label in listing.labels[at]], np.int64),
        classes=classes,
        sizes=listing.sizes[at],
        versions=listing.versions[at],
        places={name: column[at] for name, column in listing.places.items()},
    )


def _sizes(plan: ImagePlan) -> list[int]:
    return [UNKNOWN_SIZE] * len(plan.keys) if plan.sizes is None else [int(size) for size in plan.sizes]


def _places(plan: ImagePlan) -> list[tuple[Any, ...]]:
    """Where each image lies: its object, in which size and version, and what says where in it."""
    sizes = _sizes(plan)
    versions = [0] * len(sizes) if plan.versions is None else [int(version) for version in plan.versions]
    columns = [plan.places[name].tolist() for name in sorted(plan.places) if name != OBJECT]
    objects = [plan.object_key(row) for row in range(len(sizes))]
    return list(zip(objects, sizes, versions, *columns, strict=True))


def _calling(make: Callable[[int], bytes], generation: int) -> Callable[[], bytes]:
    return lambda: make(generation)
