"""What somebody may have meant by a name that is not there; knows no settings and no commands.

Names are compared by their words, as people remember words and forget where they stand: `--steps` is
`--sampler.num-inference-steps`. Nothing is better than something far-fetched, so a guess must share a word
or nearly all of its letters with what was written.
"""

import difflib
import re
from collections.abc import Iterable

CLOSE = 0.75
"""Share of letters, in order, that two spellings of one name have in common at least (difflib's ratio)."""
SHORTEST_START = 3
"""Letters of a word that stand for all of it."""


def near(word: str, words: Iterable[str]) -> str:
    """``(did you mean ...?)`` after a space, or nothing where no name is close to ``word``.

    Dashes, underscores and capitals do not matter.
    """
    ranked = [(rank, known) for known in words if (rank := _rank(word, known)) is not None]
    return f" (did you mean {max(ranked, key=lambda each: each[0])[1]!r}?)" if ranked else ""


def _rank(word: str, known: str) -> tuple[int, float] | None:
    """How well a known name fits, the larger the better; None where it is far-fetched."""
    typed, name = _plain(word), _plain(known)
    last = name.rpartition(".")[2]  # the sections before it are what people leave out
    whole = _likeness(typed, name)
    if typed == last:
        return 4, whole
    typed_words, name_words, last_words = _words(typed), _words(name), _words(last)
    if _all_among(typed_words, last_words):
        return 3, _likeness(typed, last)
    if {*typed_words} <= {*name_words}:
        return 2, whole
    if whole >= CLOSE or _same_letters(typed, name) or _all_among(typed_words, name_words):
        return 1, whole
    if _all_among(name_words, typed_words):
        return 0, whole
    return None


def _plain(name: str) -> str:
    return name.strip("-").lower().replace("_", "-")


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-.]", name) if word]


def _all_among(some: list[str], words: list[str]) -> bool:
    """Whether each of some words is, but for a typing error or its end, one of the others."""
    return bool(some) and all(any(_is_meant(one, word) for word in words) for one in some)


def _is_meant(typed: str, word: str) -> bool:
    started = len(typed) >= SHORTEST_START and word.startswith(typed)
    return started or _same_letters(typed, word) or _likeness(typed, word) >= CLOSE


def _same_letters(left: str, right: str) -> bool:
    """Letters in another order: in a short name one exchange leaves little in common in order."""
    return len(left) >= SHORTEST_START and sorted(left) == sorted(right)


def _likeness(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right, autojunk=False).ratio()
