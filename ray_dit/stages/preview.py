"""`generate --preview FILE`: a picture of some of the images made so far, for who wants to look in.

It is no part of the dataset: it lies elsewhere, shows whichever shard was finished last, and where it can't
be drawn the job goes on. Of the images no more than one shard at a time passes through the driver.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_dit.config import GenerateConfig
from ray_dit.core.media import decode, grid, thumbnails
from ray_dit.core.order import evenly
from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.folders.dataset import read_shard
from ray_dit.ledger.job import Job
from ray_dit.ledger.restore import overwrite
from ray_dit.results import ImageShardFacts
from ray_dit.runtime.shard_maker import shard_name
from ray_dit.storage.open import is_inside, open_output

SECONDS = 60.0
"""After which it is drawn anew if more is finished; earlier once twice as many shards are."""
MOST_IMAGES = 64
LARGEST_SIDE = 128
"""Of an image in it, in pixels."""
LARGEST_SHARD = 512 << 20
"""Bytes of a shard that the driver reads."""
PATIENCE = 10.0
"""Seconds that the end of the job waits for a drawing under way."""


def check_preview(config: GenerateConfig) -> None:
    """UserError for a preview that is no name of a PNG, and for one among the objects of the dataset."""
    target = config.preview
    if target is None:
        return
    if not target.lower().endswith(".png"):
        raise UserError(f"--preview: {target} is no name of a PNG: give one that ends in .png")
    if is_inside(target, config.output):
        raise UserError(
            f"--preview: {target} would lie among the objects of the dataset: give another folder"
        )
    open_output(target)


def open_preview(config: GenerateConfig, job: Job) -> "Preview | None":
    """Draws into ``config.preview``, which is checked; None where none is asked for."""
    if config.preview is None:
        return None
    folder, _, name = config.preview.rpartition("/")
    place = open_output(folder or "/")
    return Preview(lambda shard: overwrite(place, name, drawn(job, shard)))


def drawn(job: Job, shard: int) -> bytes:
    """A PNG of some images of a finished shard; UserError where it can't be read, or is too large."""
    marker = job.marker(shard_name(shard), ImageShardFacts)
    if marker is None:
        raise NotFound(f"shard {shard} has no marker")
    if marker.bytes > LARGEST_SHARD:
        raise UserError(f"a shard of {marker.bytes / 1e9:.1f} GB is too large to look in")
    there = read_shard(job.store, marker.key, marker.sha256)
    images = np.stack([decode(there.images[row]) for row in chosen(there.labels)])
    return grid(thumbnails(images, LARGEST_SIDE), math.ceil(math.sqrt(len(images))))


def chosen(labels: NDArray[np.int64], most: int = MOST_IMAGES) -> list[int]:
    """Rows to be shown: the first of each class; without classes or with too many, evenly spaced ones."""
    classes, first = np.unique(labels, return_index=True)
    if 1 < len(classes) <= most:
        return first.tolist()
    return evenly(len(labels), most).tolist()


class Preview:
    """Draws a finished shard now and then, in a thread of its own; a context that waits a little for it."""

    def __init__(self, draw: Callable[[int], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._draw, self._clock = draw, clock
        self._finished = self._shown = 0
        self._newest = -1
        self._last = clock()
        self._thread: threading.Thread | None = None
        self._has_failed = False

    def __call__(self, finished: Sequence[int]) -> None:
        """Told again and again which shards have been finished meanwhile; never waits."""
        if finished:
            self._finished += len(finished)
            self._newest = finished[-1]
        if self._finished == self._shown or (self._thread is not None and self._thread.is_alive()):
            return
        now = self._clock()
        if self._finished < 2 * self._shown and now - self._last < SECONDS:
            return
        self._shown, self._last = self._finished, now
        self._thread = threading.Thread(target=self._try, args=(self._newest,), daemon=True)
        self._thread.start()

    def _try(self, shard: int) -> None:
        try:
            self._draw(shard)
        except Exception as error:  # whatever it is, the images are made all the same
            if not self._has_failed:
                with contextlib.suppress(OSError):
                    print(f"generate: the preview can't be drawn: {first_message(error)}", file=sys.stderr)
            self._has_failed = True

    def __enter__(self) -> "Preview":
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join(PATIENCE)
