"""The reference numbers of tests/golden/dit_tiny, and the tiny model they belong to."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ray_dit.config import DiTConfig
from ray_dit.core.dit import DiT

FOLDER = Path(__file__).parent.parent / "golden/dit_tiny"
CASES = np.load(FOLDER / "cases.npz")
CONFIG = DiTConfig(**json.loads((FOLDER / "config.json").read_text()))


def case(name: str) -> torch.Tensor:
    return torch.from_numpy(CASES[name])


def weights() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "weights.safetensors")


def tiny_model() -> DiT:
    model = DiT(CONFIG)
    model.load_state_dict(weights())
    return model


def assert_near(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    """Equal to within ``relative`` of the expected values' largest magnitude."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    difference = (actual - expected).abs().max() / expected.abs().max()
    assert difference <= relative, f"off by {difference:.2e} of the largest magnitude"
