"""What stages leave, for tests that make their folders by hand.

Whole results, in which a test says only what it needs.
"""

from typing import Any

from ray_dit.config import SamplerConfig
from ray_dit.ledger.results import Manifest, R
from ray_dit.results import (
    DatasetResult,
    ImageShardFacts,
    LatentShardFacts,
    LatentsResult,
    TrainingResult,
    UsedSampler,
    VAEResult,
)


def vae_result(**fields: Any) -> VAEResult:
    """Of `train-vae`."""
    return VAEResult(**{"psnr_heldout": 27.25, "num_heldout": 4, "steps": 20, "loss": 0.1} | fields)


def latents_result(**fields: Any) -> LatentsResult:
    """Of `encode`: two images in two classes."""
    known = {"classes": ("left", "right"), "image_size": 16, "latent_shape": (4, 8, 8)}
    known |= {"rows": 2, "train_rows": 2, "bad": 0, "scaling_factor": 1.0}
    return LatentsResult(**known | {"mean": (0.0,) * 4, "std": (1.0,) * 4} | fields)


def latent_facts(shard: int, rows: int, **fields: Any) -> LatentShardFacts:
    """Of a shard of latents without a bad image."""
    known = {"seen": rows, "bad": (), "train_rows": rows, "moments_sha256": "", "sum": (), "sum_squares": ()}
    return LatentShardFacts(shard=shard, rows=rows, **known | fields)


def training_result(**fields: Any) -> TrainingResult:
    """Of `train`."""
    return TrainingResult(**{"steps": 20, "samples": 200, "loss": 0.1} | fields)


def dataset_result(**fields: Any) -> DatasetResult:
    """Of `generate`: two images in two classes."""
    known = {"rows": 2, "classes": ("left", "right"), "labels": (0, 1), "image_size": 16}
    return DatasetResult(**known | {"sampler": UsedSampler.of(SamplerConfig()), "pixels_sha256": ""} | fields)


def image_facts(shard: int, rows: int) -> ImageShardFacts:
    """Of a shard of generated images."""
    return ImageShardFacts(shard=shard, rows=rows, pixels_sha256="", first_id=0, classes={})


def manifest_of(result: R) -> Manifest[R]:
    """As it is read from a finished job without objects."""
    envelope = {"format": 1, "stage": result.stage_name, "fingerprint": "", "parts": {}, "listings": ()}
    return Manifest(**envelope, sha256="", facts=result)
