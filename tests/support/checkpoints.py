"""The golden checkpoint, imports with few options, and the comparison of weights."""

from pathlib import Path

import torch
from torch import Tensor

from ray_dit.checkpoints.importing import import_checkpoint
from ray_dit.config import (
    ImportConfig,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "dit_tiny"
"""A tiny model with the published code's parameter names; see the README there."""


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def imported(source: Path, output: Path, **fields: object) -> str:
    import_checkpoint(ImportConfig(source=str(source), output=str(output), **{"num_heads": 4, **fields}))
    return str(output)
