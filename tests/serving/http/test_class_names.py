"""Which class a prompt means, among ImageNet's thousand names and their synonyms."""

import contextlib
import sys

import pytest

from ray_dit.errors import UserError
from ray_dit.formats.labels import Labels
from ray_dit.serving.http.class_names import find_class

IMAGENET = Labels.imagenet()


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("goldfish", 1),
        ("a photo of a goldfish", 1),
        ("A PHOTO OF A GOLDFISH, 4k, trending", 1),
        ("two goldfishes in a bowl", 1),
        ("the goldfish\u2019s tail", 1),
        ("goldfish swimming beside another goldfish", 1),
        ("great white shark", 2),
        ("a great white shark", 2),  # not "white shark" alone, of the same class
        ("a man eating shark", 2),  # "man-eating shark"
        ("tiger sharks from below", 3),  # neither tiger nor shark
        ("a tiger cat", 282),
        ("Irish setter, also called red setter", 213),
        ("a monarch butterfly", 323),
        ("monarch butterflies", 323),
        ("a giant panda", 388),
        ("jack-o'-lantern at night", 607),
        ("an R.V. on the road", 757),
        ("someone with sunglasses", 837),  # the class called so, though "sunglass" is another
        ("a sunglass", 836),
        ("n01440764", 0),
        ("7", 7),
    ],
)
def test_a_name_is_found_as_whole_words(prompt, label):
    assert find_class(IMAGENET, prompt) == label


def test_every_name_and_synonym_is_found_in_a_sentence_as_it_is_alone():
    for name in IMAGENET.names:
        for spelling in {name, *(part.strip() for part in name.split(","))}:
            try:
                alone = IMAGENET.resolve(spelling)
            except UserError:  # several classes are called so
                with pytest.raises(UserError):
                    find_class(IMAGENET, f"a photo of a {spelling}.")
                continue
            for prompt in (spelling, f"a photo of a {spelling}.", f"{spelling.upper()}!"):
                assert find_class(IMAGENET, prompt) == alone, prompt


@pytest.mark.parametrize(
    ("prompt", "candidates"),
    [
        ("a hen and a tench", ["'tench, Tinca tinca' (0)", "'hen' (8)"]),
        ("a crane at work", ["'crane' (134)", "'crane' (517)"]),
        ("crane", ["134", "517"]),
        ("goldfsh", ["goldfish"]),
        ("a very detailed picture of one lonely goldfsh that swims to and fro", ["goldfish"]),
        ("hens" + " tench" * 5000, ["(0)", "(8)"]),
        ("x" * 32_000, ["0 to 999"]),
        ("class 7", ["0 to 999"]),  # a number counts as a prompt only
        ("henhouse cleaning", ["0 to 999"]),  # a part of a word is no word
    ],
)
def test_none_or_several_are_an_error_with_candidates(prompt, candidates):
    with pytest.raises(UserError) as caught:
        find_class(IMAGENET, prompt)
    message = str(caught.value)
    assert all(one in message for one in candidates)
    assert len(message) < 700


def test_names_that_differ_in_punctuation_only_are_told_apart_as_a_whole():
    labels = Labels(("C", "C++", "C#", "naïve Bayes", "3"))
    assert [find_class(labels, name) for name in labels.names] == [0, 1, 2, 3, 4]
    assert find_class(labels, "what NAIVE bayes says") == 3
    assert find_class(labels, "draw a 3") == 4
    with pytest.raises(UserError, match="several"):
        find_class(labels, "written in C")


@pytest.mark.parametrize("text", ["hen ", "great white ", "w x ", "\ufdfa", "hen, tench "])
def test_a_long_prompt_costs_no_more_than_its_length(text):
    # In calls of functions, not in time.
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event == "call"

    def cost(length: int) -> int:
        nonlocal calls
        calls = 0
        sys.setprofile(count)
        with contextlib.suppress(UserError):
            find_class(Labels(("hen", "tench", "great white shark")), (text * length)[:length])
        sys.setprofile(None)
        return calls

    assert cost(32_000) < 12 * cost(4_000)
