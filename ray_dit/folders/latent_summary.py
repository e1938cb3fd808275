"""What finished latents hold, counted: images by class and generation, sizes, what was set aside.

Of the shards only the column of labels is read; some rows can be taken to look at. Knows no VAE.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ray_dit.core.order import evenly, spread
from ray_dit.errors import UserError
from ray_dit.folders.latent_plans import generation_of_key
from ray_dit.folders.quarantine import earlier_key, quarantine_key, read_earlier, read_quarantine
from ray_dit.formats.deterministic import damaged
from ray_dit.formats.latents import read_latent_labels, read_latent_shard
from ray_dit.ledger.manifest import manifest_objects
from ray_dit.ledger.restore import get_or_none, read_whole
from ray_dit.ledger.results import Manifest, Marker
from ray_dit.results import LatentShardFacts, LatentsResult
from ray_dit.storage.store import Store, ahead

MOST_CLASSES, MOST_IMAGES = 20, 8
"""Of a sample of the latents."""
_BROKEN_LIST = "a list that can't be read"


@dataclass(frozen=True)
class GenerationSummary:
    """One generation of a latents folder."""

    images: int = 0
    shards: int = 0
    bytes: int = 0
    """Of its shards."""


@dataclass(frozen=True)
class LatentsSummary:
    """What a latents folder holds, over all its generations."""

    generations: Sequence[GenerationSummary]
    images: NDArray[np.int64]
    """Of each class, by its number."""
    set_aside: Counter[str] = field(default_factory=Counter[str])
    """Images that were not encoded, by their codes; of earlier versions by the reason, with # for
    numbers."""


def summarize(store: Store, manifest: Manifest[LatentsResult]) -> LatentsSummary:
    """Counts what finished latents hold; NotFound or UserError for a shard that is missing or damaged."""
    generations = [GenerationSummary()] * len(manifest.listings)
    classes = len(manifest.facts.classes)
    images = np.zeros(classes, np.int64)
    markers = manifest_objects(store, manifest, LatentShardFacts)
    for marker, labels in ahead(lambda marker: (marker, _labels(store, marker, classes)), markers):
        number = generation_of_key(marker.key)
        known = generations[number]
        generations[number] = GenerationSummary(
            known.images + len(labels), known.shards + 1, known.bytes + marker.bytes
        )
        images += np.bincount(labels, minlength=classes)
    aside = sum((_set_aside(store, number) for number in range(len(generations))), Counter[str]())
    return LatentsSummary(generations, images, aside)


def sample_moments(store: Store, manifest: Manifest[LatentsResult]) -> dict[int, NDArray[np.float16]]:
    """Moments [N, 2C, H, W] of a few images of a few classes, by the class's number.

    At most ``MOST_CLASSES`` classes at even distances, of each at most ``MOST_IMAGES`` at even distances in
    the first shard that has most of them: the same for the same latents. Errors as ``summarize``.
    """
    markers = list(manifest_objects(store, manifest, LatentShardFacts))
    classes = len(manifest.facts.classes)
    best: dict[int, tuple[int, int]] = {}  # of each class the images in a shard and that shard, negative
    for number, labels in enumerate(ahead(lambda marker: _labels(store, marker, classes), markers)):
        for label, count in zip(*map(np.ndarray.tolist, np.unique(labels, return_counts=True)), strict=True):
            best[label] = max(best.get(label, (0, 0)), (count, -number))
    places: list[int] = evenly(len(best), MOST_CLASSES).tolist()
    shown = [sorted(best)[at] for at in places]
    found: dict[int, NDArray[np.float16]] = {}
    for number in sorted({-best[label][1] for label in shown}):  # one shard in memory at a time
        entry = markers[number]
        shard = read_latent_shard(read_whole(store, entry.key, entry.sha256), store.where(entry.key))
        for label in (label for label in shown if best[label][1] == -number):
            rows = np.flatnonzero(shard.labels == label)
            found[label] = shard.moments[spread(rows, MOST_IMAGES)]
    return {label: found[label] for label in shown}


def _labels(store: Store, marker: Marker[LatentShardFacts], classes: int) -> NDArray[np.int64]:
    where = store.where(marker.key)
    with store.open_file(marker.key) as file:
        labels = read_latent_labels(file, where)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise damaged(where, ValueError("a label is no class"))
    return labels


def _set_aside(store: Store, generation: int) -> Counter[str]:
    """The images a generation did not encode, by the reason in its list."""
    try:
        data = get_or_none(store, quarantine_key(generation))
        if data is not None:
            return Counter(entry.code for entry in read_quarantine(data))
        earlier = read_earlier(get_or_none(store, earlier_key(generation)) or b"")
    except (ValueError, UserError):
        return Counter([_BROKEN_LIST])
    return Counter(re.sub(r"\d+", "#", entry.reason) for entry in earlier)
