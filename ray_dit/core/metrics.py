"""Figures of merit from features, logits and labels.

Knows neither images nor the network that made the features.

N samples, D features, K classes. Statistics are float64 and merge, so that shards can be measured anywhere;
merging in a fixed order gives fixed bits. Inputs may be of any float type; every figure is computed in
float64.
"""

# pyright: reportUnknownMemberType=false
# torch.linalg and Tensor.tolist carry no types.
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

ROWS_AT_ONCE = 1024
"""Rows of a pairwise matrix held at once, which bounds memory for large sets."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Count, mean and scatter (summed outer products of deviations from the mean) of a set of features."""

    count: int
    mean: Float64[Tensor, " D"]
    scatter: Float64[Tensor, "D D"]

    @classmethod
    def empty(cls, dim: int) -> "FeatureStatistics":
        """The statistics of no sample at all: what merging starts from."""
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, features: Float[Tensor, "N D"]) -> "FeatureStatistics":
        """The statistics of one batch of features."""
        if len(features) == 0:
            return cls.empty(features.shape[1])
        rows = features.double()
        mean = rows.mean(dim=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both sets together.

        The formula is that of Chan, Golub & LeVeque 1979, which does not cancel as raw sums do.
        """
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        between = torch.outer(delta, delta) * (self.count * other.count / count)
        return FeatureStatistics(
            count, self.mean + delta * (other.count / count), self.scatter + other.scatter + between
        )

    @property
    def covariance(self) -> Float64[Tensor, "D D"]:
        """The unbiased covariance.

        Raises:
            ValueError: fewer than two samples have no covariance.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Fréchet distance of two Gaussians with these means and covariances (Heusel et al. 2017, eq. 6).

    The trace of (Σa Σb)^½ is the sum of the roots of the eigenvalues of Σa^½ Σb Σa^½, which is symmetric and
    positive semi-definite whatever the rank: fewer samples than features need no jitter on the diagonal.
    """
    sigma_a, sigma_b = a.covariance, b.covariance
    values, vectors = cast(tuple[Tensor, Tensor], torch.linalg.eigh(sigma_a))
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root_a @ sigma_b @ root_a
    eigenvalues = cast(Tensor, torch.linalg.eigvalsh((product + product.T) / 2))
    cross = eigenvalues.clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * cross
    # Rounding can leave equal sets a hair below zero.
    return max(0.0, distance.item())


def inception_score(logits: Float[Tensor, "N K"], num_splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation of the inception score over consecutive splits (Salimans et al. 2016).

    Each split's score is exp of the mean KL divergence of p(class | sample) from the split's mean p(class).

    Raises:
        ValueError: fewer samples than splits.
    """
    if len(logits) < num_splits:
        raise ValueError(f"{len(logits)} samples cannot be split into {num_splits} parts")
    log_p = logits.double().log_softmax(dim=1)
    bounds = [len(logits) * split // num_splits for split in range(num_splits + 1)]
    splits = [_split_score(log_p[low:high]) for low, high in zip(bounds, bounds[1:], strict=False)]
    scores = torch.stack(splits)
    return scores.mean().item(), scores.std(correction=0).item()


def _split_score(log_p: Float64[Tensor, "N K"]) -> Float64[Tensor, ""]:
    p = log_p.exp()
    log_marginal = p.mean(dim=0, keepdim=True).log()
    # A class of probability 0 everywhere has log_marginal -inf and contributes nothing.
    terms = torch.where(p > 0, p * (log_p - log_marginal), torch.zeros_like(p))
    return terms.sum(dim=1).mean().exp()


def precision_recall(
    real: Float[Tensor, "N D"], generated: Float[Tensor, "M D"], k: int = 3
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the part of the generated samples inside a ball around some real one that reaches to its k-th
    nearest real neighbour; recall is the same with the roles exchanged.

    Raises:
        ValueError: a set of at most k samples has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= k:
        raise ValueError(f"k = {k} needs more than {k} samples of each, got {len(real)} and {len(generated)}")
    real, generated = real.double(), generated.double()
    precision = _inside(generated, real, _radii(real, k))
    recall = _inside(real, generated, _radii(generated, k))
    return precision, recall


def _row_blocks(rows: Float64[Tensor, "N D"]) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], rows.split(ROWS_AT_ONCE))


def _radii(features: Float64[Tensor, "N D"], k: int) -> Float64[Tensor, " N"]:
    """Distance of each row to its k-th nearest other row; the nearest of all, itself, is skipped."""
    parts = [torch.cdist(rows, features).kthvalue(k + 1, dim=1).values for rows in _row_blocks(features)]
    return torch.cat(parts)


def _inside(
    rows: Float64[Tensor, "N D"], centres: Float64[Tensor, "M D"], radii: Float64[Tensor, " M"]
) -> float:
    """The part of the rows that lie in at least one ball."""
    parts = [(torch.cdist(part, centres) <= radii).any(dim=1) for part in _row_blocks(rows)]
    return torch.cat(parts).double().mean().item()


def kernel_mmd(real: Float[Tensor, "N D"], generated: Float[Tensor, "M D"]) -> float:
    """Unbiased MMD² over all pairs with the kernel (x·y / D + 1)³: the KID (Bińkowski et al. 2018, eq. 4).

    Raises:
        ValueError: fewer than two samples of either.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"MMD² needs at least 2 samples of each, got {len(real)} and {len(generated)}")
    real, generated = real.double(), generated.double()
    between = _kernel_sum(real, generated) / (len(real) * len(generated))
    return _mean_of_pairs(real) + _mean_of_pairs(generated) - 2 * between


def _kernel_sum(a: Float64[Tensor, "N D"], b: Float64[Tensor, "M D"]) -> float:
    parts = [(rows @ b.T / b.shape[1] + 1).pow(3).sum() for rows in _row_blocks(a)]
    return torch.stack(parts).sum().item()


def _mean_of_pairs(rows: Float64[Tensor, "N D"]) -> float:
    """Mean of the kernel over ordered pairs of different rows."""
    with_itself = (rows.square().sum(dim=1) / rows.shape[1] + 1).pow(3).sum().item()
    return (_kernel_sum(rows, rows) - with_itself) / (len(rows) * (len(rows) - 1))


def class_counts(
    labels: Int[Tensor, " N"], predictions: Int[Tensor, " N"], num_classes: int
) -> Int64[Tensor, "2 K"]:
    """For each class how many samples were read as that class, and how many there are.

    Counts of shards add up.
    """
    right = torch.bincount(labels[labels == predictions], minlength=num_classes)
    return torch.stack([right, torch.bincount(labels, minlength=num_classes)])


def accuracy(counts: Int64[Tensor, "2 K"]) -> float:
    """The part of all samples read as what they are.

    Raises:
        ValueError: no sample at all.
    """
    right, total = cast(list[int], counts.sum(dim=1).tolist())
    if total == 0:
        raise ValueError("accuracy of no samples")
    return right / total


def per_class_accuracy(counts: Int64[Tensor, "2 K"]) -> list[float | None]:
    """For each class the part of its samples read as that class; None for a class without samples."""
    right, totals = cast(list[list[int]], counts.tolist())
    return [hits / total if total else None for hits, total in zip(right, totals, strict=True)]
