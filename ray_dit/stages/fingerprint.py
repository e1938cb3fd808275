"""What decides a stage's bytes, gathered for the job protocol."""

from importlib.metadata import version
from typing import Any

from ray_dit.config import Config

LIBRARIES = ("torch", "diffusers", "numpy", "pillow", "pyarrow", "safetensors")
"""Their versions can change bytes; a job begun with other versions refuses to go on (--accept-fingerprint)."""


def parts(
    config: Config, inputs: dict[str, str], *, resolved: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Parts of a fingerprint: configuration without placement, hashes of the inputs, library versions.

    ``resolved`` replaces settings by what they came to mean (class names by numbers, overrides by the full settings).
    """
    return {
        "config": config.content() | (resolved or {}),
        "inputs": inputs,
        "libraries": {name: version(name).split("+")[0] for name in LIBRARIES},
    }
