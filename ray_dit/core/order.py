"""Data order and split as functions: no stored index, and nothing known of files, workers or batches.

``order`` is a keyed permutation of the rows of an epoch (a Feistel network with cycle walking), so that the
state of a data pipeline is one integer. numpy's own shuffles are not used: their streams may change between
releases (NEP 19).
"""

import hashlib
import itertools
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int64, UInt64

ROUNDS = 10
MIN_BITS = 4
"""Epochs of few rows are permuted inside 2^4 numbers: on three bits the network favours some rows
measurably."""
FEW_ROWS = 6
"""Up to so many rows, the order is drawn from the list of all orders. The network on four bits favours some
of them by 1 % (2 rows) to 26 % (6 rows), and more bits would mean many more steps outside the range."""

Rows = Int64[np.ndarray, "..."]
Words = UInt64[np.ndarray, "..."]


def order(seed: int, epoch: int, position: Rows, num_rows: int) -> Rows:
    """The rows at these positions of an epoch.

    Over 0..num_rows-1 they are a permutation, another one for each (seed, epoch).

    Raises ValueError for positions outside [0, num_rows).
    """
    position = np.asarray(position, dtype=np.int64)
    if position.size and not (0 <= position.min() and position.max() < num_rows):
        raise ValueError(f"positions must lie in [0, {num_rows}), not {position.min()}..{position.max()}")
    if 0 < num_rows <= FEW_ROWS:
        return _order_of_few(seed, epoch, num_rows)[position]
    bits = max(MIN_BITS, (num_rows - 1).bit_length())
    keys = _round_keys(seed, epoch)
    rows = position.astype(np.uint64)
    walking = np.ones(rows.shape, dtype=bool)
    # Cycle walking (Black & Rogaway 2002): step on while outside; it ends, since each cycle comes back to its
    # start.
    while walking.any():
        rows[walking] = _feistel(rows[walking], bits, keys)
        walking = rows >= np.uint64(num_rows)
    return rows.astype(np.int64)


def rows_at(seed: int, positions: Rows, num_rows: int) -> Rows:
    """The rows at positions counted over all epochs.

    Position p is place p % num_rows of epoch p // num_rows.
    """
    positions = np.asarray(positions, dtype=np.int64)
    epochs, places = np.divmod(positions, num_rows)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        rows[here] = order(seed, epoch, places[here], num_rows)
    return rows


def evenly(count: int, most: int) -> Rows:
    """All of ``count`` places, or ``most`` of them at even distances, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def spread(rows: Rows, most: int) -> Rows:
    """At most ``most`` of the rows, evenly over them: rows lie class by class."""
    return rows[evenly(len(rows), most)]


def is_heldout(key: str, fraction: float) -> bool:
    """Whether the sample with this key belongs to the held-out part; a larger fraction only adds samples."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def are_heldout(keys: Iterable[str], fraction: float) -> Bool[np.ndarray, " N"]:
    """``is_heldout`` of many keys, a few times faster."""
    digests, below = bytearray(), math.ceil(fraction * 2**64)
    for key in keys:
        digests += hashlib.sha256(key.encode()).digest()[:8]
    numbers = np.frombuffer(digests, ">u8")
    return np.full(len(numbers), True) if below >= 2**64 else numbers < np.uint64(max(below, 0))


def _order_of_few(seed: int, epoch: int, num_rows: int) -> Rows:
    """One of all orders of these rows, each as likely as any other: its number is a hash of (seed, epoch)."""
    number = int(_round_keys(seed, epoch)[0]) % math.factorial(num_rows)
    return np.array(next(itertools.islice(itertools.permutations(range(num_rows)), number, None)))


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    """Ten 64-bit keys by SHA-256 of (seed, epoch, round)."""
    texts = (f"order {seed} {epoch} {number}" for number in range(ROUNDS))
    return [np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")) for text in texts]


def _feistel(value: Words, bits: int, keys: list[np.uint64]) -> Words:
    """A permutation of [0, 2^bits).

    Each round changes one half by a keyed hash of the other (Luby & Rackoff 1988).
    """
    low_bits = bits // 2
    low_mask, high_mask = (np.uint64((1 << width) - 1) for width in (low_bits, bits - low_bits))
    high, low = value >> np.uint64(low_bits), value & low_mask
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mix(high ^ key) & low_mask)
        else:
            high = high ^ (_mix(low ^ key) & high_mask)
    return (high << np.uint64(low_bits)) | low


def _mix(value: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
