"""Which class a prompt means: the class as such, or its name as whole words somewhere in a longer text.

The rule, in this order:

1. The prompt and all names and synonyms are cut into words: runs of letters and digits, without case,
   accents, a possessive 's and punctuation, so that "man-eater" is two words. A name is found where its
   words follow one another. It means the class that bears it in full, or first, before one that has it as a
   synonym.
2. A name is also found where its words differ in an English plural only, if no name is spelt exactly so.
3. Where names overlap, the longest counts: "great white shark" is no "white shark".
4. What is left must be one class. Several are an error that lists them.
5. A prompt without any name may be, as a whole, a number or a WordNet id; else it is an error with near
   names.

Knows labels and text; no HTTP.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ray_dit.errors import UserError
from ray_dit.formats.labels import Labels

WORD = re.compile(r"[^\W_]+")
POSSESSIVE = re.compile(r"['\u2019]s\b")
SHOWN = 60
"""Characters of a prompt that an error repeats."""
CANDIDATES = 6
"""Classes that an error names."""
LOOKED_AT = 5
"""Words of a prompt for which near names are looked up: each is compared with every name."""

Words = tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A name in the prompt: its words' places, and the classes that are called so."""

    start: int
    end: int
    classes: frozenset[int]

    @property
    def length(self) -> int:
        return self.end - self.start


class _Index:
    """The names of a model's classes by their words, exactly and in the singular."""

    def __init__(self, labels: Labels) -> None:
        exact: tuple[dict[Words, set[int]], ...] = ({}, {}, {})
        for number, name in enumerate(labels.names):
            synonyms = name.split(",")
            # As in `Labels.resolve`: who bears a name in full, or first, is meant by it.
            for tier, spellings in zip(exact, ([name], synonyms[:1], synonyms), strict=True):
                for spelling in spellings:
                    tier.setdefault(words_of(spelling), set()).add(number)
        self.exact = _first_wins(exact)
        self.exact.pop((), None)
        self.singular: dict[Words, frozenset[int]] = {}
        for words, classes in self.exact.items():
            key = tuple(singular(word) for word in words)
            self.singular[key] = self.singular.get(key, frozenset()) | classes
        self.longest: dict[str, int] = {}
        """Words of the longest name by its first word: few words of a prompt begin a name."""
        for words in self.singular:
            self.longest[words[0]] = max(len(words), self.longest.get(words[0], 0))
        self.single = [words[0] for words in self.exact if len(words) == 1]

    def names_in(self, words: Words) -> list[_Found]:
        """The longest name that begins at each word, if one does."""
        base = tuple(map(singular, words))
        found: list[_Found] = []
        for start in range(len(words)):
            last = min(start + self.longest.get(base[start], 0), len(words))
            for end in range(last, start, -1):
                classes = self.exact.get(words[start:end]) or self.singular.get(base[start:end])
                if classes:
                    found.append(_Found(start, end, classes))
                    break
        return found


def find_class(labels: Labels, prompt: str) -> int:
    """The number of the class that the prompt means. UserError, with candidates, for none and for several."""
    words = words_of(prompt)
    found = _longest(_index(labels).names_in(words), len(words))
    classes = sorted({number for name in found for number in name.classes})
    if len(classes) == 1:
        return classes[0]
    if not classes and len(prompt) > SHOWN:
        raise UserError(f"the prompt {_shown(prompt)} names no class; {_near(labels, words)}")
    if not classes or (len(found) == 1 and found[0].length == len(words)):
        return labels.resolve(prompt)  # a number, an id, or a name that punctuation tells from others
    listed = _listed(labels, classes)
    raise UserError(
        f"the prompt {_shown(prompt)} names several classes; give one alone, by name or number: {listed}"
    )


def words_of(text: str) -> Words:
    """The words of a text: without case, accents, possessive 's and punctuation."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in folded if not unicodedata.combining(character))
    return tuple(WORD.findall(POSSESSIVE.sub("", plain)))


def singular(word: str) -> str:
    """A word without what an English plural adds, so that two numbers of a noun are one."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@lru_cache(maxsize=32)
def _index(labels: Labels) -> _Index:
    return _Index(labels)


def _first_wins(tiers: Sequence[dict[Words, set[int]]]) -> dict[Words, frozenset[int]]:
    merged: dict[Words, frozenset[int]] = {}
    for tier in tiers:
        for words, classes in tier.items():
            merged.setdefault(words, frozenset(classes))
    return merged


def _longest(found: Sequence[_Found], num_words: int) -> list[_Found]:
    """Those that share no word with a longer one of those that are kept."""
    covered = [0] * num_words
    """Length of the longest name kept at each word."""
    kept: list[_Found] = []
    for one in sorted(found, key=lambda name: -name.length):
        if max(covered[one.start : one.end]) <= one.length:
            kept.append(one)
            covered[one.start : one.end] = [one.length] * one.length
    return kept


def _shown(prompt: str) -> str:
    return repr(prompt if len(prompt) <= SHOWN else prompt[: SHOWN - 3] + "...")


def _listed(labels: Labels, classes: Sequence[int]) -> str:
    some = ", ".join(f"{labels.names[number]!r} ({number})" for number in classes[:CANDIDATES])
    more = len(classes) - CANDIDATES
    return f"{some} and {more} more" if more > 0 else some


def _near(labels: Labels, words: Words) -> str:
    """Classes whose name is like a word of the prompt, or what a class may be given as."""
    index = _index(labels)
    longest = sorted({word for word in words if len(word) > 4}, key=lambda word: (-len(word), word))
    like = [difflib.get_close_matches(word, index.single, n=1, cutoff=0.8) for word in longest[:LOOKED_AT]]
    classes = sorted({number for names in like for name in names for number in index.exact[(name,)]})
    if classes:
        return f"did you mean {_listed(labels, classes)}?"
    return f"give a number from 0 to {len(labels) - 1} or a name such as {labels.names[0]!r}"
