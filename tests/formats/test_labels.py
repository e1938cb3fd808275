"""Class names: every way a user may name a class, and what they are told when it is none."""

import pytest

from ray_dit.errors import UserError
from ray_dit.formats.labels import Labels

LABELS = Labels(
    ("tench, Tinca tinca", "10", "crane", "crane", "fish, tench", "maillot", "maillot, tank suit")
)


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("tench, Tinca tinca", 0),
        ("tench", 0),
        ("TINCA tinca ", 0),
        ("fish", 4),
        ("4", 4),
        (4, 4),
        ("10", 1),
        ("maillot", 5),
    ],
)
def test_resolve(label: str | int, number: int) -> None:
    assert LABELS.resolve(label) == number


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("tensh", r"no class 'tensh'; did you mean 'tench' \(0\)"),
        ("zebra", "no class 'zebra'; give a number from 0 to 6 or a name such as 'tench, Tinca tinca'"),
        ("crane", r"several classes are called 'crane'.*2 \(crane\), 3 \(crane\)"),
        ("7", "no class number 7; give a number from 0 to 6"),
        (-1, "no class number -1"),
    ],
)
def test_errors(label: str | int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LABELS.resolve(label)


def test_a_model_without_classes_has_no_label() -> None:
    with pytest.raises(UserError, match="no classes"):
        Labels(()).resolve("cat")


@pytest.mark.parametrize("labels", [LABELS, Labels(("a", "é"), ("n1", "n2")), Labels(())])
def test_json_round_trip(labels: Labels) -> None:
    assert Labels.from_json(labels.to_json()) == labels


def test_wordnet_ids_belong_to_names() -> None:
    with pytest.raises(ValueError, match="2 WordNet ids for 1 names"):
        Labels(("a",), ("n1", "n2"))


def test_imagenet() -> None:
    labels = Labels.imagenet()
    assert len(labels) == 1000
    assert len(set(labels.wordnet_ids)) == 1000
    assert list(labels.wordnet_ids) == sorted(labels.wordnet_ids), (
        "the usual order is that of the WordNet ids"
    )
    known = {
        "golden retriever": 207,
        "207": 207,
        "n02099601": 207,
        "tench": 0,
        "toilet tissue": 999,
        "goldfish": 1,
    }
    assert {name: labels.resolve(name) for name in known} == known
    with pytest.raises(UserError, match=r"134 \(crane\), 517 \(crane\)"):
        labels.resolve("crane")
    with pytest.raises(UserError, match="did you mean 'golden retriever'"):
        labels.resolve("golden retreiver")


def test_every_imagenet_class_can_be_named() -> None:
    labels = Labels.imagenet()
    assert [labels.resolve(i) for i in labels.wordnet_ids] == list(range(1000))
    named = [n for n, name in enumerate(labels.names) if name != "crane"]
    assert [labels.resolve(labels.names[n]) for n in named] == named
