"""Train class-conditional diffusion transformers and mass-produce labelled images with them on Ray.

``ray_dit.load(uri)`` gives a model's `Pipeline`; `SamplerConfig` holds settings to sample with.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_dit.config import SamplerConfig
    from ray_dit.pipeline import Pipeline, load

__version__ = "0.1.0"
__all__ = ["Pipeline", "SamplerConfig", "load"]

_PLACES = {"Pipeline": "ray_dit.pipeline", "SamplerConfig": "ray_dit.config", "load": "ray_dit.pipeline"}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # on demand, since the pipeline needs torch: settings and --help do without
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
