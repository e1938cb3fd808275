"""A tiny official checkpoint, imported; a model as `train` leaves it, exported."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ray_dit.checkpoints.exporting import export
from ray_dit.config import (
    DiTConfig,
    ExportConfig,
    SamplerConfig,
    VAESizeConfig,
)
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.core.dit import DiT
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.vae import VAE
from tests.support.checkpoints import GOLDEN, imported


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return load_file(GOLDEN / "weights.safetensors")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE that halves its pictures."""
    folder = tmp_path_factory.mktemp("vae")
    for name, data in (
        VAE.create(VAESizeConfig(block_out_channels=(4, 8), norm_num_groups=2), seed=1).files().items()
    ):
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def model(official: dict[str, Tensor], vae: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model, imported."""
    folder = tmp_path_factory.mktemp("model")
    torch.save(official, folder / "tiny.pt")
    return imported(folder / "tiny.pt", folder / "model", vae=str(vae))


@pytest.fixture(scope="module")
def trained(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model as `train` leaves it.

    It has few classes, names, a normalisation per channel, and guidance on all channels.
    """
    config = ModelConfig(
        model=DiTConfig(input_size=4, hidden_size=32, depth=2, num_heads=2, num_classes=3),
        latents=LatentsConfig(shift=(0.1, 0.2, 0.3, 0.4), scale=(0.5, 1.0, 2.0, 0.25), image_size=8),
        sampler=SamplerConfig(num_inference_steps=5),
        origin="a test",
    )
    dit = DiT(config.model, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dit.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("trained")
    files = VAE.load(str(vae)).files()
    for key, data in model_objects(
        config, dit.state_dict(), Labels(("cat", "dog, hound", "cow")), files, ""
    ).items():
        (folder / key).parent.mkdir(exist_ok=True)
        (folder / key).write_bytes(data)
    return str(folder)


@pytest.fixture(scope="module")
def exported(trained: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(
        export(ExportConfig(model=trained, output=str(tmp_path_factory.mktemp("exported") / "pipeline")))
    )
