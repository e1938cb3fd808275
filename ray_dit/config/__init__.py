"""Every setting of every stage, as data.

There is a module per stage, each with a frozen pydantic model. Imports neither torch nor ray.

A configuration is checked when it is made, saved with what was made from it, and its ``content()`` is part of
the fingerprint that decides the bytes. `base` holds what all share, and the mark that tells settings that
decide bytes from those that only place the work.
"""

from ray_dit.config.base import (
    Config,
    Content,
    ContentConfig,
    Fraction,
    NonNegativeInt,
    NumberOrRange,
    Over,
    Placement,
    PositiveInt,
    Precision,
    Seconds,
    Seed,
    Uri,
    VaeSource,
    content_defaults,
    placement_names,
    range_of,
    section_of,
)
from ray_dit.config.checkpoints import ExportConfig, ExportModelConfig, ImportConfig
from ray_dit.config.diffusion import DiffusionConfig
from ray_dit.config.encode import EncodeConfig
from ray_dit.config.evaluate import ClassifierConfig, EvaluateConfig
from ray_dit.config.generate import GenerateConfig
from ray_dit.config.images import ImagesConfig
from ray_dit.config.maintenance import GcConfig, InfoConfig, VerifyConfig
from ray_dit.config.model import PRESET_SIZES, DiTConfig, DiTSizeConfig
from ray_dit.config.model_folder import LatentsConfig, ModelConfig
from ray_dit.config.report import ReportConfig
from ray_dit.config.sampler import SamplerConfig, SamplerName
from ray_dit.config.serve import ApiConfig, EngineConfig, LimitsConfig, ServeConfig
from ray_dit.config.shards import ShardsConfig
from ray_dit.config.stage import StageConfig
from ray_dit.config.train import TrainConfig
from ray_dit.config.train_vae import TrainVaeConfig, VAESizeConfig
from ray_dit.config.training import OptimizerConfig, TrainingConfig

__all__ = [
    "PRESET_SIZES", "ApiConfig", "ClassifierConfig", "Config", "Content", "ContentConfig", "DiTConfig",
    "DiTSizeConfig", "DiffusionConfig", "EncodeConfig", "EngineConfig", "EvaluateConfig", "ExportConfig",
    "ExportModelConfig", "Fraction", "GcConfig", "GenerateConfig", "ImagesConfig", "ImportConfig",
    "InfoConfig", "LatentsConfig", "LimitsConfig", "ModelConfig", "NonNegativeInt", "NumberOrRange",
    "OptimizerConfig", "Over", "Placement", "PositiveInt", "Precision", "ReportConfig", "SamplerConfig",
    "SamplerName", "Seconds", "Seed", "ServeConfig", "ShardsConfig", "StageConfig", "TrainConfig",
    "TrainVaeConfig", "TrainingConfig", "Uri", "VAESizeConfig", "VaeSource", "VerifyConfig",
    "content_defaults", "placement_names", "range_of", "section_of",
]  # fmt: skip
