"""Planned images, read: decoded and cropped, the bad ones set aside and listed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_dit.core.media import UnreadableImage, decode
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


def load_images(
    plan: ImagePlan, rows: Iterable[int], *, all_there: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[BadImage]]:
    """Reads and centre-crops images.

    Returns uint8 [N, S, S, 3], the N row numbers they belong to, and the bad ones, in order of ``rows``:
    unreadable, gone or changed since they were planned. An object that holds several images and is gone or
    changed is NotFound or Conflict, as is any that is with ``all_there``.
    """
    store = store_of_images(plan.uri)
    images: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    bad: list[BadImage] = []
    for row in rows:
        try:
            images.append(decode(_read(plan, store, row), plan.size, plan.decoding))
            kept.append(int(row))
        except UnreadableImage as error:
            bad.append(BadImage(plan.keys[row], str(error)))
        except NotAsPlanned as error:
            if all_there or plan.shares_objects:
                raise _lost(store, error) from error
            bad.append(BadImage(plan.keys[row], error.reason))
    shape = (len(images), plan.size, plan.size, 3)
    stacked = np.stack(images) if images else np.zeros(shape, np.uint8)
    return stacked, np.array(kept, dtype=np.int64), bad


def _read(plan: ImagePlan, store: Store, row: int) -> bytes:
    reader = input_format(plan.format)
    return reader.read_image(plan.source(store, row), plan.keys[row], plan.place(row))


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
