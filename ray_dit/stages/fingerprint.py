"""What decides a stage's bytes, gathered for the job protocol.

Also how a folder of another version is compared with it.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ray_dit.config import Config, ImportConfig, StageConfig, content_defaults, placement_names, section_of
from ray_dit.ledger.comparison import RULES, Comparison
from ray_dit.ledger.job import Job
from ray_dit.storage.open import open_store

LIBRARIES = ("torch", "diffusers", "numpy", "pillow", "pyarrow", "safetensors")
"""Their versions can change bytes; a job begun with other versions refuses to go on
(--accept-fingerprint)."""

_KINDS = (
    "deep greys are scaled, transparency shows a background, long strips are cropped before they are resized"
)
"""What changed for every stage that reads images."""
STAGE_RULES: dict[str, tuple[str, ...]] = {
    "train-vae": ("as first released", _KINDS),
    "encode": ("as first released", _KINDS),
    "train": ("as first released",),
    "generate": ("as first released",),
    "evaluate": ("as first released", _KINDS),
    "model": ("as first released",),  # import-checkpoint; a trained model's job rests on its training's
}
"""How each stage turns settings into bytes, a line per number. A change that gives other bytes for the same
settings adds a line that says what changed, as a user should read it: who has an unfinished folder under the
number before is told it."""


def open_job(
    config: StageConfig | ImportConfig,
    stage: str,
    inputs: dict[str, str],
    *,
    resolved: Mapping[str, Any] | None = None,
) -> Job:
    """Begins or continues the stage's job in its output folder.

    Conflict where the folder belongs to another one.

    ``resolved`` replaces settings by what they came to mean: class names by numbers, what was asked for by
    the full settings (as a configuration or as JSON data).
    """
    return Job.open(
        open_store(config.output),
        stage,
        parts(config, stage, inputs, resolved=resolved),
        accept_fingerprint=config.accept_fingerprint,
        comparison=comparison(type(config), stage, resolved=resolved),
    )


def parts(
    config: Config, stage: str, inputs: dict[str, str], *, resolved: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parts of a fingerprint.

    They are the configuration without placement, hashes of the inputs, library versions, and rules above 1.
    """
    settled = {
        name: value.content() if isinstance(value, Config) else value
        for name, value in (resolved or {}).items()
    }
    rules = len(STAGE_RULES[stage])
    return {
        "config": config.content() | settled,
        "inputs": inputs,
        "libraries": {name: version(name).split("+")[0] for name in LIBRARIES},
        **({RULES: rules} if rules > 1 else {}),
    }


def comparison(config: type[Config], stage: str, *, resolved: Mapping[str, Any] | None = None) -> Comparison:
    """How the parts of a folder begun by another version are read.

    Some settings were not there yet, and some have become placement.
    """
    defaults = content_defaults(config)
    for name, value in (resolved or {}).items():
        field = config.model_fields.get(name)
        section = type(value) if isinstance(value, Config) else field and section_of(field)
        if (
            section is not None
        ):  # settled, so what is absent is the section's own default, not "not asked for"
            defaults[name] = content_defaults(section)
    return Comparison(
        defaults={"config": defaults},
        placement=frozenset(f"config.{name}" for name in placement_names(config)),
        rules=STAGE_RULES[stage],
    )
