"""Images whose files have the same bytes as another's: counted and listed when latents are finished.

A training image that is a copy of a held-out one counts as held out, or what is measured on those would have
been trained on. Knows no actors and no VAE.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_dit.formats.deterministic import array_sha256, damaged, parquet_bytes, read_parquet
from ray_dit.formats.latents import channel_sums, read_image_hashes, read_latent_shard
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_tag
from ray_dit.ledger.restore import read_whole
from ray_dit.ledger.results import Marker
from ray_dit.results import Duplicates, LatentShardFacts
from ray_dit.storage.store import Store, ahead

COLUMNS = {
    "key": pa.string(),
    "label": pa.int64(),
    "sha256": pa.string(),
    "heldout": pa.bool_(),
    "counts_as_heldout": pa.bool_(),
}
Shards = Sequence[Marker[LatentShardFacts]]


def duplicates_key(generation: int = 0) -> str:
    """Where a generation lists the exact copies among all images up to it."""
    return f"duplicates{generation_tag(generation)}.parquet"


def find_duplicates(store: Store, shards: Shards) -> tuple[Duplicates | None, bytes]:
    """What is to be said of the exact copies among the images of these shards, and the list of them.

    The list is Parquet of ``COLUMNS``, with all images that have a copy in the order of the shards; empty
    bytes where none has. None where no shard has hashes of its images. UserError for a damaged shard.
    """
    known = [marker for marker in shards if marker.facts.images_sha256 is not None]
    if not known:
        return None, b""
    read = list(ahead(lambda marker: _hashes(store, marker), known))
    labels, heldout, hashes = (np.concatenate(columns) for columns in zip(*read, strict=True))
    names = np.ascontiguousarray(hashes).view("V32").ravel()
    _, which, counts = np.unique(names, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[which] > 1)
    if not len(rows):
        return Duplicates(within_classes=0, across_classes=0, heldout=0), b""
    group, label = which[rows], labels[rows]
    in_classes = len(np.unique(np.stack([group, label]), axis=1)[0])
    of_heldout = np.isin(group, group[heldout[rows]])
    bounds = np.cumsum([0, *(len(part[0]) for part in read)])
    numbers = np.searchsorted(bounds, rows, side="right") - 1
    keys: list[str] = []
    sums = np.zeros((2, len(known[0].facts.sum)))
    for number in np.unique(numbers).tolist():
        entry, here = known[number], numbers == number
        shard = read_latent_shard(read_whole(store, entry.key, entry.sha256), store.where(entry.key))
        own = rows[here] - bounds[number]
        keys += [shard.keys[row] for row in own]
        lost = own[of_heldout[here] & ~heldout[rows[here]]]
        sums += np.stack(channel_sums(replace(shard, heldout=~np.isin(np.arange(len(shard.keys)), lost))))
    table = {
        "key": keys,
        "label": label,
        "sha256": [hashes[row].tobytes().hex() for row in rows],
        "heldout": heldout[rows],
        "counts_as_heldout": of_heldout,
    }
    found = Duplicates(
        within_classes=len(rows) - in_classes,
        across_classes=in_classes - len(np.unique(group)),
        heldout=int((of_heldout & ~heldout[rows]).sum()),
        sum=tuple(sums[0].tolist()),
        sum_squares=tuple(sums[1].tolist()),
    )
    return found, parquet_bytes(pa.table(table, pa.schema(COLUMNS)), {})


def copies_of_heldout(store: Store, generation: int) -> frozenset[str]:
    """The keys of all images that count as held out as copies; none where none are listed.

    UserError where the list is damaged.
    """
    job = Job(store, "", "", generation)
    key = duplicates_key(generation)
    if job.plain.sha256(key) is None:
        return frozenset()
    table, _ = read_parquet(job.plain.get(key), COLUMNS, where=store.where(key))
    listed = zip(table["key"].to_pylist(), table["counts_as_heldout"].to_pylist(), strict=True)
    return frozenset(str(name) for name, counts in listed if counts)


def _hashes(
    store: Store, marker: Marker[LatentShardFacts]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.uint8]]:
    """Labels, ``heldout`` and hashes [N, 32] of a shard's images, the hashes held against its marker."""
    where = store.where(marker.key)
    with store.open_file(marker.key) as file:
        labels, heldout, hashes = read_image_hashes(file, where)
    if array_sha256(hashes) != marker.facts.images_sha256:
        raise damaged(where, ValueError("the hashes of its images are others"))
    return labels, heldout, hashes
