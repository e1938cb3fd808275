"""The samples of a training step as a function of their global positions; knows no files and no workers.

A sample is (row, mirror, posterior noise, time step, noise, label drop), and each comes from (seed, position)
alone, so the batch of step s is the same whoever computes it, on however many workers, before or after a
restart.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ray_dit.core.latents import normalize, sample_moments
from ray_dit.core.rng import Stream, integers, normal, uniform


@dataclass(frozen=True)
class TrainingBatch:
    """What the DiT is trained on.

    Noisy latents are q_sample(x_start, t, noise); ``y`` has dropped labels replaced.
    """

    x_start: Float[Tensor, "B C H W"]
    t: Int[Tensor, " B"]
    noise: Float[Tensor, "B C H W"]
    y: Int[Tensor, " B"]


def mirror_choice(seed: int, positions: Int[Tensor, " B"], num_views: int) -> Int[Tensor, " B"]:
    """Which view of its image each sample takes: 0 the image, 1 its mirror image; each as likely."""
    return integers(seed, positions, 0, num_views, stream=Stream.TRAIN_MIRROR)


def training_batch(  # noqa: PLR0913 - a batch is a function of all of these, and of nothing else
    seed: int,
    positions: Int[Tensor, " B"],
    moments: Float[Tensor, "B C2 H W"],
    labels: Int[Tensor, " B"],
    *,
    shift: float | Float[Tensor, " C"],
    scale: float | Float[Tensor, " C"],
    num_timesteps: int,
    num_classes: int,
    class_dropout_prob: float,
) -> TrainingBatch:
    """The samples at these global positions.

    ``moments`` are raw (mean, log-variance) of the rows the positions fall on, ``labels`` their classes; a
    label is replaced by the null class ``num_classes`` with probability ``class_dropout_prob`` (Ho & Salimans
    2022).
    """
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    posterior_noise = normal(seed, positions, 0, shape, stream=Stream.TRAIN_MOMENTS)
    x_start = normalize(sample_moments(moments, posterior_noise), shift, scale)
    dropped = uniform(seed, positions, 0, (), stream=Stream.TRAIN_LABEL_DROP) < class_dropout_prob
    return TrainingBatch(
        x_start=x_start,
        t=integers(seed, positions, 0, num_timesteps, stream=Stream.TRAIN_T),
        noise=normal(seed, positions, 0, shape, stream=Stream.TRAIN_NOISE),
        y=torch.where(dropped, num_classes, labels),
    )
