"""The samples of a training step as a function of their global positions; knows no files and no workers.

A sample is (row, mirror, posterior noise, time step, noise, label drop), and each comes from (seed, position)
alone, so the batch of step s is the same whoever computes it, on however many workers, before or after a
restart.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ray_dit.core.latents import normalize, sample_moments
from ray_dit.core.order import order
from ray_dit.core.rng import (
    Stream,
    draw_words,
    integers,
    normal,
    normal_blocks,
    to_integers,
    to_normal,
    to_uniform,
    uniform_blocks,
)


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
    blocks = {
        Stream.TRAIN_MOMENTS: normal_blocks(shape),
        Stream.TRAIN_NOISE: normal_blocks(shape),
        Stream.TRAIN_T: 1,
        Stream.TRAIN_LABEL_DROP: uniform_blocks(()),
    }
    drawn = draw_words(seed, positions, 0, blocks)
    posterior_noise = to_normal(drawn[Stream.TRAIN_MOMENTS], shape)
    dropped = to_uniform(drawn[Stream.TRAIN_LABEL_DROP]) < class_dropout_prob
    return TrainingBatch(
        x_start=normalize(sample_moments(moments, posterior_noise), shift, scale),
        t=to_integers(drawn[Stream.TRAIN_T], num_timesteps),
        noise=to_normal(drawn[Stream.TRAIN_NOISE], shape),
        y=labels.masked_fill(dropped, num_classes),
    )


def validation_batch(
    seed: int,
    rows: Int[Tensor, " B"],
    t: Int[Tensor, " B"],
    moments: Float[Tensor, "B C2 H W"],
    labels: Int[Tensor, " B"],
    *,
    shift: float | Float[Tensor, " C"],
    scale: float | Float[Tensor, " C"],
) -> TrainingBatch:
    """Held-out rows, by their numbers, with noise that follows from the number; no label is dropped."""
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    noise, posterior_noise = (normal(seed, rows, use, shape, stream=Stream.VALIDATION) for use in (0, 1))
    x_start = normalize(sample_moments(moments, posterior_noise), shift, scale)
    return TrainingBatch(x_start=x_start, t=t, noise=noise, y=labels)


def validation_t(seed: int, count: int, num_timesteps: int) -> Int[np.ndarray, " count"]:
    """Time steps of so many held-out rows: evenly over 0..num_timesteps-1, in an order of the seed's.

    (Rows lie class by class; in their order each class would get a range of t of its own.)
    """
    places = order(seed, 0, np.arange(count), count)
    return (2 * places + 1) * num_timesteps // (2 * count)


T_RANGES = 10
"""Ranges of t whose mean losses are shown apart, at most."""


def t_ranges(num_timesteps: int) -> tuple[str, ...]:
    """Names of equal ranges of t, first and last step of each."""
    count = min(T_RANGES, num_timesteps)
    firsts = [-(-number * num_timesteps // count) for number in range(count + 1)]
    return tuple(f"{first}-{end - 1}" for first, end in zip(firsts, firsts[1:], strict=False))


def t_range(t: Int[Tensor, " B"], num_timesteps: int) -> Int[Tensor, " B"]:
    """Which of ``t_ranges`` each time step lies in."""
    return t * min(T_RANGES, num_timesteps) // num_timesteps
