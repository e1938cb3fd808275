"""Class names: what a label number is called, and which number a user means; knows no model and no images."""

import difflib
import json
import operator
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, SupportsIndex, cast

from ray_dit.errors import UserError
from ray_dit.formats.json_text import parse_json

NUM_IMAGENET = 1000
WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Labels:
    """Names of the classes, by number; a name may list synonyms after commas, as WordNet's do.

    ``wordnet_ids`` is empty or has one id per class, such as ``n02099601``.
    """

    names: tuple[str, ...]
    wordnet_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.wordnet_ids and len(self.wordnet_ids) != len(self.names):
            raise ValueError(f"{len(self.wordnet_ids)} WordNet ids for {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _tiers(self) -> tuple[dict[str, list[int]], ...]:
        """Spellings to numbers, most exact first: whole name or WordNet id, first synonym, any synonym."""
        tiers: tuple[dict[str, list[int]], ...] = ({}, {}, {})
        for number, name in enumerate(self.names):
            synonyms = [part.strip() for part in name.split(",")]
            spellings = ([name, *self.wordnet_ids[number : number + 1]], synonyms[:1], synonyms)
            for tier, some in zip(tiers, spellings, strict=True):
                for spelling in {s.casefold() for s in some}:
                    tier.setdefault(spelling, []).append(number)
        return tiers

    @cached_property
    def unique_names(self) -> tuple[str, ...]:
        """The names, each once: one that several classes share gets its WordNet id, or its number, behind it.

        Readers of datasets take two classes of one name for a mistake.
        """
        told = self.known_ids or tuple(map(str, range(len(self))))
        unique = _told_apart(self.names, told)
        while len({*unique}) < len(unique):  # a name may look like what another one became
            unique = _told_apart(unique, tuple(map(str, range(len(self)))))
        return unique

    @cached_property
    def known_ids(self) -> tuple[str, ...]:
        """The classes' WordNet ids: those given, those that are the names, or those of ImageNet's names.

        Else none.
        """
        if self.wordnet_ids:
            return self.wordnet_ids
        if self.names and all(map(WORDNET_ID.fullmatch, self.names)):
            return self.names
        if len(self) != NUM_IMAGENET:
            return ()
        imagenet = Labels.imagenet()
        same = all(a.casefold() == b.casefold() for a, b in zip(self.names, imagenet.names, strict=True))
        return imagenet.wordnet_ids if same else ()

    def resolve(self, label: str | SupportsIndex) -> int:
        """The number of a class given by number, name, synonym or WordNet id.

        An exact name wins over a number.

        Raises UserError for an unknown class, with near matches, and for a name that several classes share.
        """
        if not self.names:
            raise UserError(f"this model has no classes, so it can't make {label!r}: leave the labels out")
        if isinstance(label, str):
            for tier in self._tiers:
                if numbers := tier.get(label.strip().casefold(), []):
                    return self._only(label, numbers)
        try:
            number = int(label) if isinstance(label, str) else operator.index(label)
        except (ValueError, TypeError):
            raise UserError(f"there is no class {label!r}; {self._suggest(str(label))}") from None
        if not 0 <= number < len(self):
            raise UserError(
                f"there is no class number {number}; give a number from 0 to {len(self) - 1} or a name"
            )
        return number

    def _only(self, label: str, numbers: Sequence[int]) -> int:
        if len(numbers) == 1:
            return numbers[0]
        meanings = ", ".join(f"{number} ({self.names[number]})" for number in numbers)
        raise UserError(
            f"several classes are called {label!r}; give the number of the one you mean: {meanings}"
        )

    def _suggest(self, label: str) -> str:
        spellings = {spelling: numbers for tier in self._tiers for spelling, numbers in tier.items()}
        near = difflib.get_close_matches(label.strip().casefold(), spellings, n=4, cutoff=0.6)
        if near:
            return "did you mean " + " or ".join(f"{name!r} ({spellings[name][0]})" for name in near)
        return f"give a number from 0 to {len(self) - 1} or a name such as {self.names[0]!r}"

    def to_json(self) -> bytes:
        """The bytes of ``labels.json``."""
        data = {"names": self.names, "wordnet_ids": self.wordnet_ids or None}
        return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes | str) -> "Labels":
        """The inverse of :meth:`to_json`; ValueError when it is something else."""
        data: Any = parse_json(text)
        if not isinstance(data, dict) or "names" not in data:
            raise ValueError("labels are an object with the list 'names'")
        fields = cast(dict[str, Any], data)
        return cls(_strings(fields["names"]), _strings(fields.get("wordnet_ids") or []))

    @classmethod
    def from_lines(cls, text: str) -> "Labels":
        """One name per line; blank lines at the end don't count. ValueError for one between names."""
        names = [line.strip() for line in text.rstrip().splitlines()]
        if "" in names:
            raise ValueError(f"line {names.index('') + 1} is blank")
        return cls(tuple(names))

    @classmethod
    def numbered(cls, num_classes: int) -> "Labels":
        """Names for classes that have none: their numbers."""
        return cls(tuple(str(number) for number in range(num_classes)))

    @classmethod
    def imagenet(cls) -> "Labels":
        """The 1,000 classes of ILSVRC 2012 in the usual order (sorted by WordNet id), named by WordNet."""
        return cls.from_json((resources.files("ray_dit") / "data" / "imagenet_labels.json").read_bytes())


def _told_apart(names: Sequence[str], told: Sequence[str]) -> tuple[str, ...]:
    """The names, with what tells a class from another one of its name behind those that repeat."""
    counts = Counter(names)
    rows = zip(names, told, strict=True)
    return tuple(name if counts[name] == 1 else f"{name} ({beside})" for name, beside in rows)


def _strings(data: Any) -> tuple[str, ...]:
    if not isinstance(data, list) or not all(isinstance(one, str) for one in cast(list[Any], data)):
        raise ValueError("names and WordNet ids are lists of strings")
    return tuple(cast(list[str], data))
