"""Published statistics of real images, which published figures are measured against."""

from typing import Any
from zipfile import BadZipFile

import fsspec
import numpy as np
import torch

from ray_dit.core.metrics import FeatureStatistics
from ray_dit.errors import UserError, first_message

IMAGENET_256 = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
    "VIRTUAL_imagenet256_labeled.npz"
)
"""Of ImageNet's training images at 256 pixels, 2048 features of the Inception network (Dhariwal & Nichol
2021)."""


def reference_statistics(source: str, dim: int) -> FeatureStatistics:
    """``mu`` [dim] and ``sigma`` [dim, dim] of a .npz at a path or URL, of which nothing else is read.

    Raises:
        UserError: another file, or statistics of another number of features.
    """
    try:
        with opened(source) as file, np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
    except (OSError, EOFError, KeyError, ValueError, TypeError, BadZipFile) as error:
        raise UserError(
            f"{source} holds no reference statistics ({first_message(error)}): give a .npz with mu and sigma"
        ) from error
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise UserError(
            f"mu and sigma in {source} have shapes {list(mean.shape)} and {list(covariance.shape)}: give "
            f"those of {dim} features"
        )
    return FeatureStatistics(2, mean, covariance)  # for 2 samples scatter and covariance are one


def opened(source: str) -> Any:
    """A file at a path or URL, to be read."""
    return fsspec.open(source, "rb")
