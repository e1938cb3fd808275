"""Figures of merit against torch-fidelity's numbers, and their behaviour at the edges."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_dit.core import metrics
from ray_dit.core.metrics import FeatureStatistics

GOLDEN = np.load(Path(__file__).parent.parent / "golden/metrics/metrics.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def golden_statistics(name: str) -> FeatureStatistics:
    return FeatureStatistics.of(golden(name))


def test_statistics_are_those_of_numpy():
    features = GOLDEN["features_real"]
    statistics = golden_statistics("features_real")
    assert statistics.count == 600
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0, dtype=np.float64), rtol=0, atol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(np.float64).T), rtol=1e-12)


def test_merged_statistics_are_those_of_the_whole():
    features = golden("features_real").double() + 1e4  # far from zero: raw sums of squares would lose digits
    merged = FeatureStatistics.empty(features.shape[1])
    for part in features.split([1, 0, 250, 7, 342]):
        merged = merged.merge(FeatureStatistics.of(part))
    whole = FeatureStatistics.of(features)
    assert merged.count == whole.count
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-12)


def test_merging_in_one_order_gives_the_same_bits():
    parts = [FeatureStatistics.of(part) for part in golden("features_real").split(64)]

    def fold() -> FeatureStatistics:
        total = FeatureStatistics.empty(24)
        for part in parts:
            total = total.merge(part)
        return total

    assert torch.equal(fold().scatter, fold().scatter)


def test_merging_nothing_with_nothing_is_nothing():
    assert FeatureStatistics.empty(3).merge(FeatureStatistics.of(torch.zeros(0, 3))).count == 0


def test_a_covariance_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = FeatureStatistics.of(torch.zeros(1, 3)).covariance


def test_frechet_distance_is_the_reference_s():
    distance = metrics.frechet_distance(
        golden_statistics("features_generated"), golden_statistics("features_real")
    )
    assert distance == pytest.approx(GOLDEN["frechet_inception_distance"].item(), rel=1e-6)


def test_frechet_distance_of_a_set_from_itself_is_zero_whatever_its_rank():
    few = FeatureStatistics.of(golden("features_real")[:5])  # rank 4 of 24
    assert 0 <= metrics.frechet_distance(few, few) < 1e-6


def test_frechet_distance_of_low_rank_gaussians_has_its_closed_form():
    # Axis-aligned Gaussians: the distance is |mean difference|² + Σ (sd_a − sd_b)², also where some sd are 0.
    def diagonal(means: list[float], sds: list[float]) -> FeatureStatistics:
        variances = torch.tensor(sds, dtype=torch.float64).square()
        return FeatureStatistics(11, torch.tensor(means, dtype=torch.float64), torch.diag(variances) * 10)

    a, b = diagonal([0, 1, 0], [2, 0, 1]), diagonal([3, 1, 0], [5, 1, 0])
    assert metrics.frechet_distance(a, b) == pytest.approx(9 + 9 + 1 + 1, abs=1e-9)
    assert metrics.frechet_distance(b, a) == pytest.approx(20, abs=1e-9)


def test_inception_score_is_the_reference_s():
    mean, std = metrics.inception_score(golden("logits_generated"))
    assert mean == pytest.approx(GOLDEN["inception_score_mean"].item(), rel=1e-6)
    assert std == pytest.approx(GOLDEN["inception_score_std"].item(), rel=1e-6)


def test_inception_score_of_certain_and_even_classes_is_their_number():
    # Probabilities of exactly 0 and 1, and a fifth class that never occurs.
    logits = torch.eye(4, 5).repeat(10, 1) * 1e4
    mean, std = metrics.inception_score(logits, num_splits=2)
    assert (mean, std) == (pytest.approx(4), pytest.approx(0))


def test_inception_score_refuses_more_splits_than_samples():
    with pytest.raises(ValueError, match="9 samples cannot be split into 10"):
        metrics.inception_score(torch.zeros(9, 3))


@pytest.mark.parametrize("rows_at_once", [metrics.ROWS_AT_ONCE, 77])
def test_precision_and_recall_are_the_reference_s(monkeypatch: pytest.MonkeyPatch, rows_at_once: int):
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", rows_at_once)
    precision, recall = metrics.precision_recall(golden("features_real"), golden("features_generated"))
    assert precision == pytest.approx(GOLDEN["precision"].item(), abs=1e-7)
    assert recall == pytest.approx(GOLDEN["recall"].item(), abs=1e-7)


def test_precision_and_recall_need_neighbours():
    with pytest.raises(ValueError, match="more than 3 samples"):
        metrics.precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


@pytest.mark.parametrize("rows_at_once", [metrics.ROWS_AT_ONCE, 77])
def test_kernel_mmd_is_the_reference_s(monkeypatch: pytest.MonkeyPatch, rows_at_once: int):
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", rows_at_once)
    mmd = metrics.kernel_mmd(golden("features_real"), golden("features_generated"))
    assert mmd == pytest.approx(GOLDEN["kid_unbiased_all_pairs"].item(), rel=1e-6)


def test_kernel_mmd_needs_pairs():
    with pytest.raises(ValueError, match="at least 2 samples"):
        metrics.kernel_mmd(torch.zeros(1, 2), torch.zeros(9, 2))


def test_class_counts_are_hits_and_totals_a_class():
    counts = metrics.class_counts(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 2]), 3)
    assert counts.tolist() == [[2, 0, 1], [3, 0, 1]]
    assert metrics.accuracy(counts) == 0.75
    assert metrics.per_class_accuracy(counts) == [pytest.approx(2 / 3), None, 1.0]


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        metrics.accuracy(torch.zeros(2, 2, dtype=torch.int64))
