"""What every feature network and every figure of the registry must hold."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_dit.config import ClassifierConfig
from ray_dit.metrics import (
    FEATURES,
    FIGURES,
    JUDGE,
    ON_GENERATED,
    ON_REAL,
    FeatureNetwork,
    Figure,
    Network,
    Piece,
    Sets,
    Tensors,
    figures_for,
    measure,
    merge,
)
from ray_dit.metrics.base import Published

# --- feature networks

SIZE, NUM_CLASSES = 32, 3


def images(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def a_judge(tmp_path: Path) -> Network:
    """Trained for a moment: what is tested is how it is called."""
    train = FEATURES["judge"].train
    assert train is not None
    settings = ClassifierConfig(steps=2, batch_size=8, width=4)
    weights, facts = train(images(16), np.arange(16) % NUM_CLASSES, NUM_CLASSES, settings, 0)
    return FEATURES["judge"].load(lambda: weights, facts)


def an_inception(tmp_path: Path) -> Network:
    """With random weights: the published ones are a download."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Untrained(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Keeps the weights it begins with."""

    torch.save({}, tmp_path / "none.pth")
    torch.manual_seed(0)
    untrained = Untrained(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "none.pth")
    )
    file = io.BytesIO()
    torch.save(untrained.state_dict(), file)
    return FEATURES["inception"].load(file.getvalue, Published(source="a test", device="cpu"))


NETWORKS: dict[str, Callable[[Path], Network]] = {"judge": a_judge, "inception": an_inception}
"""How the tests come by each network; a new entry needs a line here."""


def test_every_network_is_tested():
    assert list(FEATURES) == list(NETWORKS)
    for name, entry in FEATURES.items():
        assert isinstance(entry, FeatureNetwork)
        assert entry.name == name
        assert (entry.train is None) != (entry.published is None)  # its weights come from somewhere


@pytest.mark.parametrize("name", FEATURES)
def test_a_network_sees_each_image_alone(name: str, tmp_path: Path):
    entry, network = FEATURES[name], NETWORKS[name](tmp_path)
    seen = network(images(7))
    assert seen.features.shape == (7, entry.dim)
    assert seen.features.device.type == "cpu"
    assert seen.features.isfinite().all()
    assert (seen.features.std(dim=0) > 0).any()  # images are told apart
    assert not seen.features.requires_grad
    assert (seen.logits is not None) == entry.knows_classes
    if seen.logits is not None:
        assert seen.logits.shape == (7, NUM_CLASSES)
        assert seen.logits.isfinite().all()
    parts = [network(part).features for part in np.split(images(7), [1, 3])]
    torch.testing.assert_close(torch.cat(parts), seen.features, rtol=1e-4, atol=1e-5)
    assert torch.equal(network(images(7)).features, seen.features)


# --- figures: sets in which a known part of the images is spoilt

NUM_IMAGES, DIM = 120, 6
CLASSES = tuple(f"class {number}" for number in range(NUM_CLASSES))


def piece(spoilt: float, logits: dict[str, float], *, seed: int = 0) -> Piece:
    """``spoilt``: how far the features lie off.

    ``logits``: for each classifier the part of the images it reads wrongly.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM_IMAGES) % NUM_CLASSES
    features = torch.randn(NUM_IMAGES, DIM, generator=generator) * (1 + spoilt) + spoilt

    def read(wrong: float) -> torch.Tensor:
        misread = torch.arange(NUM_IMAGES) < wrong * NUM_IMAGES
        return torch.nn.functional.one_hot((labels + misread) % NUM_CLASSES, NUM_CLASSES).float()

    return Piece(
        features=features,
        compared=torch.ones(NUM_IMAGES, dtype=torch.bool),
        labels=labels,
        logits={name: read(wrong) for name, wrong in logits.items()},
        num_classes=NUM_CLASSES,
    )


def rows(of: Piece, first: int, last: int) -> Piece:
    return Piece(
        features=of.features[first:last],
        compared=of.compared[first:last],
        labels=of.labels[first:last],
        logits={name: logits[first:last] for name, logits in of.logits.items()},
        num_classes=of.num_classes,
    )


def merged(figure: Figure, whole: Piece, *ends: int) -> Tensors:
    """The statistics of a piece that was cut at these rows."""
    total: Tensors = {}
    cuts = [0, *ends, NUM_IMAGES]
    for first, last in zip(cuts, cuts[1:], strict=False):
        total = merge([figure], total, measure([figure], rows(whole, first, last)))
    return total


def values(figure: Figure, spoilt: float, *ends: int) -> dict[str, object]:
    """Of spoilt generated images, a classifier trained on them, and held-out ones that are not spoilt."""
    train = piece(0.0, {JUDGE: 0.0})
    generated = piece(spoilt, {JUDGE: spoilt})
    heldout = piece(0.0, {JUDGE: 0.0, ON_GENERATED: spoilt, ON_REAL: 0.0})
    sets = Sets(
        train=merged(figure, train, *ends),
        generated=merged(figure, generated, *ends),
        heldout=merged(figure, heldout, *ends),
        classes=CLASSES,
        trained_on={JUDGE: 500, ON_GENERATED: NUM_IMAGES, ON_REAL: NUM_IMAGES},
    )
    return dict(figure.values(sets))


def test_every_figure_has_values_of_its_own():
    names: list[str] = []
    for key, figure in FIGURES.items():
        assert isinstance(figure, Figure)
        assert figure.name == key
        found = values(figure, 0.2)
        assert {figure.name, figure.ceiling} <= set(found)
        names += found
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_best_for_equal_sets_and_gets_worse(name: str):
    figure = FIGURES[name]
    found = [values(figure, spoilt)[name] for spoilt in (0.0, 0.2, 0.5)]
    assert found[0] == pytest.approx(figure.best, abs=1e-9)
    worsening = np.diff(np.array(found, dtype=np.float64))
    assert (worsening < -0.01).all() if figure.higher_is_better else (worsening > 0.01).all()


@pytest.mark.parametrize("name", FIGURES)
def test_the_ceiling_does_not_move_with_the_generated_images(name: str):
    figure = FIGURES[name]
    for spoilt in (0.0, 0.5):
        assert values(figure, spoilt)[figure.ceiling] == pytest.approx(figure.best, abs=1e-9)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("ends", [(40,), (1, 2, 3, 100), (0, 60, 60)])
def test_pieces_merge_to_what_they_are_at_once(name: str, ends: tuple[int, ...]):
    """Empty pieces among them."""
    figure = FIGURES[name]
    at_once, in_pieces = values(figure, 0.3), values(figure, 0.3, *ends)
    assert at_once.keys() == in_pieces.keys()
    for key, value in at_once.items():
        assert in_pieces[key] == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_kept_does_not_grow_with_the_images(name: str):
    figure = FIGURES[name]
    whole = piece(0.3, {JUDGE: 0.3})

    def size(count: int) -> int:
        return sum(tensor.numel() for tensor in measure([figure], rows(whole, 0, count)).values())

    assert size(10) == size(NUM_IMAGES)


@pytest.mark.parametrize("name", FIGURES)
def test_only_the_compared_images_count_where_sets_are_compared(name: str):
    """A figure of the features looks at the mask, a figure of the labels takes all images."""
    figure = FIGURES[name]
    if figure.needs_classes:
        return
    whole = piece(0.3, {})
    some = torch.arange(NUM_IMAGES) < 50
    masked = Piece(features=whole.features, compared=some)
    kept, wanted = measure([figure], masked), measure([figure], rows(whole, 0, 50))
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[key], wanted[key]) for key in kept)


def test_figures_that_need_classes_are_not_asked_of_a_network_without():
    judged = {figure.name for figure in figures_for(FEATURES["judge"])}
    assert judged == set(FIGURES)
    for figure in figures_for(FEATURES["inception"]):
        assert not figure.needs_classes
        found = dict(
            figure.values(
                Sets(train=merged(figure, piece(0.0, {})), generated=merged(figure, piece(0.5, {})))
            )
        )
        assert figure.name in found
        assert figure.ceiling not in found


def test_statistics_that_figures_share_are_kept_once():
    everything = measure(FIGURES.values(), piece(0.3, {JUDGE: 0.3}))
    assert set(everything) == {
        name for figure in FIGURES.values() for name in measure([figure], piece(0.3, {JUDGE: 0.3}))
    }
