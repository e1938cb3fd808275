"""The order is a permutation, a well mixed one, another for each seed and epoch; the split is stable."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_dit.core.order import is_heldout, order, rows_at


def whole(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    return order(seed, epoch, np.arange(num_rows), num_rows)


def chi2(counts: np.ndarray) -> float:
    """How many standard deviations the chi-squared statistic of equal probabilities lies above its mean."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 255, 256, 257, 1000, 4097])
def test_every_row_comes_exactly_once(num_rows: int):
    for seed, epoch in ((0, 0), (7, 3)):
        assert sorted(whole(seed, epoch, num_rows).tolist()) == list(range(num_rows))


@given(num_rows=st.integers(1, 2**50), seed=st.integers(0, 2**63 - 1), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_slice_is_a_slice_of_the_whole(num_rows: int, seed: int, data: st.DataObject):
    places = st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=20)
    positions = np.array(data.draw(places))
    rows = order(seed, 1, positions, num_rows)
    assert rows.dtype == np.int64
    assert 0 <= rows.min()
    assert rows.max() < num_rows
    alone = [order(seed, 1, positions[i : i + 1], num_rows)[0] for i in range(len(positions))]
    assert rows.tolist() == alone
    assert len(set(rows.tolist())) == len(set(positions.tolist()))


def test_first_rows_are_even_over_seeds():
    for num_rows in (3, 10, 100):
        first = [int(order(seed, 0, np.array([0]), num_rows)[0]) for seed in range(1000)]
        assert chi2(np.bincount(first, minlength=num_rows)) < 4


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5, 6])
def test_all_orders_of_a_few_rows_are_equally_likely(num_rows: int):
    orders = list(itertools.permutations(range(num_rows)))
    epochs = 30_000  # enough to show that the network on four bits is uneven at 3 rows and more
    counts = Counter(tuple(whole(0, epoch, num_rows).tolist()) for epoch in range(epochs))
    assert chi2(np.array([counts[rows] for rows in orders])) < 4


def test_neighbours_part_and_epochs_are_unrelated():
    num_rows = 10_007
    rows = whole(0, 0, num_rows)
    for other in (whole(0, 1, num_rows), whole(1, 0, num_rows), np.roll(rows, 1), np.arange(num_rows)):
        assert abs(np.corrcoef(rows, other)[0, 1]) < 5 / np.sqrt(num_rows)
        assert (rows == other).sum() < 10
    steps = np.diff(rows) % num_rows
    assert chi2(np.bincount(steps // 101, minlength=100)[:99]) < 4


def test_seed_and_epoch_are_not_added_up():
    assert not np.array_equal(whole(0, 1, 1000), whole(1, 0, 1000))
    assert not np.array_equal(whole(1, 11, 1000), whole(11, 1, 1000))


def test_positions_run_on_through_the_epochs():
    positions = np.arange(0, 35)
    expected = np.concatenate([whole(4, epoch, 10) for epoch in range(4)])[:35]
    assert rows_at(4, positions, 10).tolist() == expected.tolist()
    assert rows_at(4, positions[[33, 2, 17]], 10).tolist() == expected[[33, 2, 17]].tolist()


def test_values_stay_what_they_are():
    """Made by this code: a change here changes which samples every training step sees."""
    assert order(3, 2, np.arange(6), 1_281_167).tolist() == GOLDEN_ROWS
    assert whole(3, 2, 7).tolist() == GOLDEN_FEW_ROWS
    assert [whole(3, 2, num_rows).tolist() for num_rows in range(1, 7)] == GOLDEN_FEWEST_ROWS
    assert [key for key in map(str, range(200)) if is_heldout(key, 0.02)] == GOLDEN_HELDOUT


@pytest.mark.parametrize("position", [-1, 10])
def test_positions_outside_are_refused(position: int):
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        order(0, 0, np.array([position]), 10)


def test_heldout_has_its_size_and_only_grows():
    keys = [f"class/{number}.png" for number in range(20_000)]
    small, large = ({key for key in keys if is_heldout(key, fraction)} for fraction in (0.02, 0.1))
    assert small < large
    for found, fraction in ((small, 0.02), (large, 0.1)):
        assert abs(len(found) - 20_000 * fraction) < 4 * np.sqrt(20_000 * fraction)
    assert not any(is_heldout(key, 0.0) for key in keys)


GOLDEN_ROWS = [1214461, 124614, 10649, 972372, 672078, 678568]
GOLDEN_FEW_ROWS = [0, 2, 1, 5, 4, 3, 6]
GOLDEN_FEWEST_ROWS = [
    [0],
    [0, 1],
    [0, 1, 2],
    [3, 0, 1, 2],
    [3, 4, 0, 1, 2],
    [3, 4, 5, 0, 1, 2],
]
GOLDEN_HELDOUT = ["51", "55", "152", "178"]
