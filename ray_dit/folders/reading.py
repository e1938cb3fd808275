"""Planned images, read: decoded and cropped, the bad ones set aside and listed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_dit.core.media import DecodedImage, decode_image
from ray_dit.core.to_rgb import Decoding, UnreadableImage
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.pinned import NotAsPlanned
from ray_dit.folders.sources import store_of_images
from ray_dit.formats.registry import input_format
from ray_dit.storage.store import Store, ahead

QUARANTINE_KEY = "quarantine.tsv"
"""Where a stage lists the images it has set aside."""
FLEETING = ("gone", "changed")


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read, and why."""

    key: str
    reason: str
    """``gone`` and ``changed`` where its object is not there, or another one than was planned."""

    @property
    def is_fleeting(self) -> bool:
        """Whether it may be read another time: what is made without it may come out differently then."""
        return self.reason in FLEETING


Decode = Callable[[bytes, int, Decoding], DecodedImage]
"""As ``decode_image``: bytes, the side in pixels, and how; UnreadableImage where they are no image."""
Outcome = DecodedImage | BadImage


@dataclass(frozen=True)
class Loaded:
    """Images uint8 [N, S, S, 3], the N rows they belong to, the bad ones, and what was converted."""

    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    bad: list[BadImage]
    conversions: Mapping[str, int]
    """How many images took each conversion, sorted by name."""


def load_images(
    plan: ImagePlan, rows: Iterable[int], *, all_there: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[BadImage]]:
    """Reads and centre-crops images, one after the other; ``loading.py`` does it with threads.

    Returns uint8 [N, S, S, 3], the N row numbers they belong to, and the bad ones, in order of ``rows``:
    unreadable, gone or changed since they were planned. An object that holds several images and is gone or
    changed is NotFound or Conflict, as is any that is with ``all_there``.
    """
    store, rows = store_of_images(plan.uri), list(rows)

    def outcomes() -> Iterator[tuple[int, Outcome]]:
        for row in rows:
            data = fetched(plan, store, row, all_there=all_there)
            yield row, data if isinstance(data, BadImage) else decoded(plan, row, data, decode_image)

    loaded = gathered(plan, outcomes(), len(rows))
    return loaded.images, loaded.kept, loaded.bad


def fetched(plan: ImagePlan, store: Store, row: int, *, all_there: bool = False) -> bytes | BadImage:
    """The bytes of an image, as its plan has it; errors as ``load_images``."""
    reader = input_format(plan.format)
    try:
        return reader.read_image(plan.source(store, row), plan.keys[row], plan.place(row))
    except UnreadableImage as error:
        return BadImage(plan.keys[row], str(error))
    except NotAsPlanned as error:
        if all_there or plan.shares_objects:
            raise _lost(store, error) from error
        return BadImage(plan.keys[row], error.reason)


def decoded(plan: ImagePlan, row: int, data: bytes, decode: Decode) -> Outcome:
    """What becomes of an image's bytes."""
    try:
        return decode(data, plan.size, plan.decoding)
    except UnreadableImage as error:
        return BadImage(plan.keys[row], str(error))


def gathered(plan: ImagePlan, outcomes: Iterable[tuple[int, Outcome]], count: int) -> Loaded:
    """The images of ``count`` rows and what has become of each, together."""
    images = np.empty((count, plan.size, plan.size, 3), np.uint8)
    kept: list[int] = []
    bad: list[BadImage] = []
    conversions: Counter[str] = Counter()
    for row, outcome in outcomes:
        if isinstance(outcome, BadImage):
            bad.append(outcome)
            continue
        images[len(kept)] = outcome.pixels
        kept.append(int(row))
        conversions.update(outcome.conversions)
    return Loaded(images[: len(kept)], np.array(kept, np.int64), bad, dict(sorted(conversions.items())))


def _lost(store: Store, error: NotAsPlanned) -> UserError:
    where = store.where(error.key)
    if error.reason == "gone":
        return NotFound(f"{where} is gone since its images were planned: bring it back and run this again")
    return Conflict(
        f"{where} is not what it was when its images were planned: bring that back and run this again, or "
        "take another output folder"
    )


def find_bad(
    plan: ImagePlan, rows: NDArray[np.int64], advance: Callable[[int], None] = lambda _: None
) -> list[BadImage]:
    """The bad ones among these images, by trying each; ``advance`` is told how many were tried."""
    bad: list[BadImage] = []
    for done, found in enumerate(ahead(lambda row: load_images(plan, [row])[2], rows.tolist()), start=1):
        bad += found
        advance(done)
    return bad


def quarantine_bytes(bad: Iterable[BadImage]) -> bytes:
    """The list of the images that were set aside, as the stages leave it."""
    return ("key\treason\n" + "".join(f"{entry.key}\t{entry.reason}\n" for entry in bad)).encode()


def read_quarantine(data: bytes) -> list[BadImage]:
    """What ``quarantine_bytes`` was given."""
    lines = [line.partition("\t") for line in data.decode().splitlines()[1:]]
    return [BadImage(key, reason) for key, _, reason in lines]


def check_bad(bad: int, total: int, max_bad: float, where: str, first: Sequence[BadImage]) -> None:
    """UserError when more images are unreadable than allowed."""
    if bad > max_bad * total:
        example = f", the first is {first[0].key!r} ({first[0].reason})" if first else ""
        fleeting = any(entry.is_fleeting for entry in first)
        ways = "bring those back that are gone or changed" if fleeting else "repair or remove them"
        raise UserError(
            f"{bad} of {total} images in {where} cannot be read, more than images.max_bad = {max_bad} "
            f"allows{example}: {ways}, or raise --images.max-bad"
        )
