"""Which folder of images holds which class of a model: by WordNet id, name, number, or place in the order.

Knows names alone.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence

from ray_dit.formats.labels import Labels


def match_classes(folders: Sequence[str], labels: Labels) -> tuple[int, ...] | None:
    """For each class the number of its folder, where each has one and no folder is left; else None.

    The first way that fits all folders counts: they are called by WordNet ids; by names, whole, or told apart
    as in a dataset, or by their first synonym, or any; by the numbers of classes; or the classes have no
    names but numbers, and are those of the folders sorted by letter, as torchvision numbers them.
    """
    if len(folders) != len(labels):
        return None
    ways: tuple[Callable[[], Sequence[int | None]], ...] = (
        lambda: _looked_up(folders, _numbers(labels.known_ids)),
        lambda: _looked_up(folders, _numbers(labels.names)),
        lambda: _looked_up(folders, _numbers(labels.unique_names)),
        lambda: _looked_up(folders, _synonyms(labels, first=True)),
        lambda: _looked_up(folders, _synonyms(labels, first=False)),
        lambda: [int(name) if name.isascii() and name.isdecimal() else None for name in folders],
        lambda: _by_place(folders, labels),
    )
    for way in ways:
        found = way()
        if sorted(-1 if number is None else number for number in found) == [*range(len(labels))]:
            place = {number: folder for folder, number in enumerate(found)}
            return tuple(place[number] for number in range(len(labels)))
    return None


def unmatched(folders: Sequence[str], labels: Labels) -> str | None:
    """A folder that is no class, or a class without a folder; None where each has its other by some name."""
    known = {_key(name) for names in (labels.known_ids, labels.names, labels.unique_names) for name in names}
    known |= _synonyms(labels, first=False).keys()
    odd = [folder for folder in folders if _key(folder) not in known]
    there = {_key(folder) for folder in folders}
    odd += [name for name in labels.names if _key(name) not in there] if not odd else []
    return min(odd, default=None)


def _looked_up(folders: Sequence[str], numbers: Mapping[str, int]) -> Sequence[int | None]:
    return [numbers.get(_key(folder)) for folder in folders]


def _numbers(names: Sequence[str]) -> Mapping[str, int]:
    """The class of each name; of those that share one, the last, so that not all have a folder."""
    return {_key(name): number for number, name in enumerate(names)}


def _synonyms(labels: Labels, *, first: bool) -> Mapping[str, int]:
    """The class of each synonym, all of which stand behind commas; what several share is none's."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(labels.names):
        synonyms = {_key(part) for part in (name.split(",")[:1] if first else [name, *name.split(",")])}
        for synonym in synonyms:
            found.setdefault(synonym, []).append(number)
    return {synonym: numbers[0] for synonym, numbers in found.items() if len(numbers) == 1}


def _by_place(folders: Sequence[str], labels: Labels) -> Sequence[int | None]:
    if labels.names != Labels.numbered(len(labels)).names:
        return [None] * len(folders)
    place = {name: number for number, name in enumerate(sorted(folders))}
    return [place[folder] for folder in folders]


def _key(name: str) -> str:
    """A name without what file systems and people change of it."""
    return unicodedata.normalize("NFC", name).strip().casefold()
