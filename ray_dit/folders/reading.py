"""Planned images, read: decoded and cropped, the bad ones set aside and listed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ray_dit.core.media import DecodedImage, decode_image
from ray_dit.core.to_rgb import Decoding, UnreadableImage
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.pinned import NotAsPlanned
from ray_dit.folders.sources import store_of_images
from ray_dit.formats.registry import input_format
from ray_dit.results import BadImage
from ray_dit.storage.store import Store, ahead

LOST = {
    "gone": "its object is gone since the images were planned",
    "changed": "its object is another one than was planned",
}
"""Why an image is set aside whose object is not as planned."""

Decode = Callable[[bytes, int, Decoding], DecodedImage]
"""As ``decode_image``: bytes, the side in pixels, and how; UnreadableImage where they are no image."""


@dataclass(frozen=True)
class Read:
    """An image that could be read."""

    image: DecodedImage
    sha256: bytes
    """Of the bytes it was decoded from."""


Outcome = Read | BadImage


@dataclass(frozen=True)
class Loaded:
    """Images uint8 [N, S, S, 3], the N rows they belong to, the bad ones, and what was converted."""

    images: NDArray[np.uint8]
    kept: NDArray[np.int64]
    bad: list[BadImage]
    converted: int
    """How many images took any conversion."""
    conversions: Mapping[str, int]
    """How many took each, sorted by name."""
    sha256: NDArray[np.uint8]
    """[N, 32], of the bytes each image was decoded from."""


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
        return bad_image(plan, row, error)
    except NotAsPlanned as error:
        if all_there or plan.shares_objects:
            raise _lost(store, error) from error
        label, key = int(plan.labels[row]), plan.object_key(row)
        return BadImage(plan.keys[row], LOST[error.reason], error.reason, label, key)


def decoded(plan: ImagePlan, row: int, data: bytes, decode: Decode) -> Outcome:
    """What becomes of an image's bytes."""
    try:
        return Read(decode(data, plan.size, plan.decoding), hashlib.sha256(data).digest())
    except UnreadableImage as error:
        return bad_image(plan, row, error, data)


def bad_image(plan: ImagePlan, row: int, error: UnreadableImage, data: bytes | None = None) -> BadImage:
    """What is known of an image that can't be read, of whose bytes ``data`` were."""
    return BadImage(
        plan.keys[row],
        str(error),
        error.code,
        label=int(plan.labels[row]),
        object=plan.object_key(row),
        bytes=None if data is None else len(data),
        sha256=None if data is None else hashlib.sha256(data).hexdigest(),
        **(asdict(error.seen) if error.seen else {}),
    )


def gathered(plan: ImagePlan, outcomes: Iterable[tuple[int, Outcome]], count: int) -> Loaded:
    """The images of ``count`` rows and what has become of each, together."""
    images = np.empty((count, plan.size, plan.size, 3), np.uint8)
    kept: list[int] = []
    bad: list[BadImage] = []
    conversions: Counter[str] = Counter()
    converted, hashes = 0, bytearray()
    for row, outcome in outcomes:
        if isinstance(outcome, BadImage):
            bad.append(outcome)
            continue
        images[len(kept)] = outcome.image.pixels
        kept.append(int(row))
        hashes += outcome.sha256
        converted += bool(outcome.image.conversions)
        conversions.update(outcome.image.conversions)
    names = dict(sorted(conversions.items()))
    sha256 = np.frombuffer(hashes, np.uint8).reshape(len(kept), 32)
    return Loaded(images[: len(kept)], np.array(kept, np.int64), bad, converted, names, sha256)


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
