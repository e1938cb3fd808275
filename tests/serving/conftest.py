"""A tiny model folder with random weights, and servers over it on 127.0.0.1.

Shape checks of the core are off here: they are the core's tests' affair, and cost as much as a small step.
"""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config as jaxtyping_config

from ray_dit.config import DiTConfig, SamplerConfig, VAESizeConfig
from ray_dit.config.model_folder import LatentsConfig
from ray_dit.config.serve import EngineConfig
from ray_dit.core.dit import DiT
from ray_dit.formats.labels import Labels
from ray_dit.formats.model_folder import ModelConfig, model_objects
from ray_dit.pipeline import Pipeline, load
from ray_dit.serving.service import ModelService
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE
from tests.support.serving import serving

NAMES = ("tench, Tinca tinca", "goldfish", "great white shark", "crane, bird", "crane, machine", "hen")


@pytest.fixture(autouse=True, scope="module")
def _no_shape_checks():
    before = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def model_uri(tmp_path_factory) -> str:
    """A model of 32 x 32 images in six classes; random weights, so images of structured noise."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    shape = DiTConfig(
        input_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=len(NAMES)
    )
    model = DiT(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if (
                "adaLN" in name or "final_layer" in name
            ):  # zeros at first, and images would not depend on the class
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    config = ModelConfig(
        model=shape,
        latents=LatentsConfig(scale=0.5, image_size=32),
        sampler=SamplerConfig(name="ddim", num_inference_steps=6, guidance_scale=2.0),
    )
    vae = VAE.create(VAESizeConfig(block_out_channels=(8, 8, 8), norm_num_groups=4))
    store = open_store(str(folder))
    for key, data in model_objects(config, model.state_dict(), Labels(NAMES), vae.files(), "card").items():
        store.put(key, data)
    return str(folder)


@pytest.fixture(scope="session")
def pipeline(model_uri: str) -> Pipeline:
    return load(model_uri, "cpu")


@pytest.fixture(scope="session")
def service(pipeline: Pipeline) -> Iterator[ModelService]:
    service = ModelService("tiny", pipeline, EngineConfig(profile_seconds=0, max_queued=2000))
    yield service
    service.close()


@pytest.fixture(scope="session")
def url(service: ModelService) -> Iterator[str]:
    """A server without keys over the tiny model."""
    with serving({"tiny": service}) as address:
        yield address
