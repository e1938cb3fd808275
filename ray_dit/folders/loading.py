"""Planned images, read and decoded by threads: reading runs ahead, so that decoding seldom waits for storage.

Knows no shards and no accelerator. What comes out is what ``load_images`` gives, whatever the threads: an
image is a function of its bytes, and they are put together in the order of their rows.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ray_dit.core.media import decode_image
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.reading import BadImage, Decode, Loaded, Outcome, decoded, fetched, gathered
from ray_dit.folders.sources import store_of_images
from ray_dit.storage.store import UNKNOWN_SIZE, Store

BYTES_AHEAD = 64 << 20
"""Encoded bytes that are being read or wait to be decoded, of all shards together."""
ASSUMED_BYTES = 1 << 20
"""What an image is taken to have whose size is not known before it is read."""
LEAST_READS, READS_PER_THREAD, MOST_READS = 16, 8, 64
"""Requests under way: with 8 per decoding thread, storage that takes 32 ms hides behind images of 4 ms. An
S3 client has 64 connections."""


class Loader:
    """Reads and decodes the images of any number of shards, of which those asked for first come first."""

    def __init__(self, decode_threads: int, *, decode: Decode = decode_image) -> None:
        reads = min(max(LEAST_READS, READS_PER_THREAD * decode_threads), MOST_READS)
        self._reads = ThreadPoolExecutor(reads, thread_name_prefix="read")
        self._decodes = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._room = Room(BYTES_AHEAD)
        self._asking = threading.Lock()
        self._decode = decode

    def load(self, plan: ImagePlan, rows: Iterable[int]) -> Loaded:
        """The images of these rows and the bad ones, in their order; errors as ``load_images``.

        May be called by several threads at once.
        """
        store = store_of_images(plan.uri)
        rows = list(rows)
        with self._asking:  # so that one shard's images are not between another's
            reads = deque(self._reads.submit(self._read, plan, store, row) for row in rows)
        try:
            return gathered(plan, zip(rows, _in_order(reads), strict=True), len(rows))
        finally:
            for read in reads:  # of a load that failed
                read.cancel()

    def close(self) -> None:
        """Ends the threads, after what they are at."""
        self._reads.shutdown(cancel_futures=True)
        self._decodes.shutdown(cancel_futures=True)

    def _read(self, plan: ImagePlan, store: Store, row: int) -> "Future[Outcome]":
        """Reads an image, and hands it on to be decoded."""
        held = Held(self._room, _expected_bytes(plan, row))
        try:
            data = fetched(plan, store, row)
            if isinstance(data, BadImage):
                held.give_back()
                return _known(data)
            held.is_really(len(data))
            return self._decodes.submit(self._decoded, plan, row, data, held)
        except BaseException:
            held.give_back()
            raise

    def _decoded(self, plan: ImagePlan, row: int, data: bytes, held: "Held") -> Outcome:
        try:
            return decoded(plan, row, data, self._decode)
        finally:
            held.give_back()


class Room:
    """A number of bytes that threads share: who wants more than is free waits, and one always gets some."""

    def __init__(self, size: int) -> None:
        self._size, self._used = size, 0
        self._changed = threading.Condition()

    def take(self, wanted: int) -> None:
        """Waits until there is room for so many bytes, or all of it is free."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + wanted <= self._size)
            self._used += wanted

    def change(self, by: int) -> None:
        """Takes more at once, or gives back."""
        with self._changed:
            self._used += by
            self._changed.notify_all()


class Held:
    """The bytes that one image has taken."""

    def __init__(self, room: Room, expected: int) -> None:
        self._room, self._taken = room, expected
        room.take(expected)

    def is_really(self, size: int) -> None:
        """Its size turns out to be this."""
        self._room.change(size - self._taken)
        self._taken = size

    def give_back(self) -> None:
        """It is decoded, or there is none."""
        self._room.change(-self._taken)
        self._taken = 0


def _in_order(reads: "deque[Future[Future[Outcome]]]") -> Iterator[Outcome]:
    """What comes of each; taken from the front, so that nothing is kept that has been handed on."""
    while reads:
        yield reads.popleft().result().result()


def _known(outcome: Outcome) -> "Future[Outcome]":
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


def _expected_bytes(plan: ImagePlan, row: int) -> int:
    """Bytes of an image as its plan has them, where it does."""
    if plan.shares_objects:
        return int(plan.place(row).get("length", ASSUMED_BYTES))
    size = UNKNOWN_SIZE if plan.sizes is None else int(plan.sizes[row])
    return ASSUMED_BYTES if size == UNKNOWN_SIZE else size
