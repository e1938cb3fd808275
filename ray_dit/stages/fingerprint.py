"""What decides a stage's bytes, gathered for the job protocol.

Also how a folder of another version is compared with it.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ray_dit.config import Config, ImportConfig, StageConfig, content_defaults, placement_names, section_of
from ray_dit.errors import Conflict
from ray_dit.ledger.comparison import RULES, Comparison
from ray_dit.ledger.description import generation_of, known_description, newest_begun, only_differs_in
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import manifest_key
from ray_dit.storage.open import open_output

LIBRARIES = ("torch", "diffusers", "numpy", "pillow", "pyarrow", "safetensors")
"""Their versions can change bytes; a job begun with other versions refuses to go on
(--accept-fingerprint)."""

_KINDS = (
    "deep greys are scaled, transparency shows a background, long strips are cropped before they are resized"
)
"""What changed for every stage that reads images."""
_CURVE = (
    "a point of the loss curve holds more than the loss, the curve is loss.jsonl, and keys hold the worker "
    "history"
)
"""What changed for both stages that train."""
STAGE_RULES: dict[str, tuple[str, ...]] = {
    "train-vae": ("as first released", _KINDS, _CURVE),
    "encode": (
        "as first released",
        "plan.parquet lists the size and version of each image's object",
        _KINDS,
        "rows of a shard can be read one by one, each with a checksum",
    ),
    "train": ("as first released", _CURVE),
    "generate": (
        "as first released",
        "Parquet shards have row groups of a hundred images, names of classes that repeat are told apart, "
        "and images without classes have no labels",
        "`--compile` compiles the VAE's decoder too",
    ),
    "evaluate": ("as first released", _KINDS),
    "model": ("as first released",),  # import-checkpoint; a trained model's job rests on its training's
}
"""How each stage turns settings into bytes, a line per number. A change that gives other bytes for the same
settings adds a line that says what changed, as a user should read it: who has an unfinished folder under the
number before is told it."""


KEPT_RULES = {
    "encode": frozenset({2, 4}),
    "train": frozenset({2}),
    "train-vae": frozenset({3}),
    "generate": frozenset({2, 3}),
}
"""Numbers of rules that changed nothing but a stage's plan, what a training notes of itself, the form of
shards or what is compiled, which are still as before for a job that was begun before them."""
ROWS_SINCE = 4
"""Rules of encode since which the rows of a shard can be read one by one."""


def rules_with_plan(stage: str, begun: int | None) -> int | None:
    """The number of rules that a job goes on under whose plan, if it has one, is stored.

    ``begun``: those it was begun under, which still hold where later ones are among ``KEPT_RULES``. None for
    those of today.
    """
    later = range((begun or 0) + 1, len(STAGE_RULES[stage]) + 1)
    return begun if begun and later and KEPT_RULES.get(stage, frozenset()).issuperset(later) else None


def open_job(
    config: StageConfig | ImportConfig,
    stage: str,
    inputs: dict[str, str],
    *,
    resolved: Mapping[str, Any] | None = None,
    extend: bool = False,
    may_change: tuple[str, ...] = (),
    rules: int | None = None,
) -> Job:
    """Begins or continues the stage's job in its output folder, in the generation these settings belong to.

    Conflict where the folder belongs to another one.

    ``resolved`` replaces settings by what they came to mean: class names by numbers, what was asked for by
    the full settings (as a configuration or as JSON data).

    ``extend``: the next generation of a finished job, which may differ from the one before in the parts
    ``may_change`` alone; the newest one where nothing differs (``Job.extend``). ``rules``: see
    ``rules_with_plan``.
    """
    store = open_output(config.output)
    ours = parts(config, stage, inputs, resolved=resolved, rules=rules)
    compared = comparison(type(config), stage, resolved=resolved, rules=rules)
    accept = config.accept_fingerprint
    if extend:
        return Job.extend(
            store, stage, ours, may_change=may_change, accept_fingerprint=accept, comparison=compared
        )
    generation = generation_of(store, ours, compared, libraries=not accept)
    try:
        return Job.open(
            store, stage, ours, accept_fingerprint=accept, generation=generation, comparison=compared
        )
    except Conflict as error:
        there = known_description(store, generation) or {"parts": {}}
        changed = compared.differences(there["parts"], ours)
        finished = store.head(manifest_key(generation)) is not None
        if changed and finished and only_differs_in(may_change, changed):
            raise Conflict(f"{error}, or add --extend to keep what is there and add to it") from error
        raise


def begun_with(output: str, name: str) -> str | None:
    """Hash of an input that the job in a folder was begun with, by its name; None where there is none.

    What was extended since is then read as it was (``tied_manifest``).
    """
    store = open_output(output)
    there = known_description(store, newest_begun(store))
    return there["parts"].get("inputs", {}).get(name) if there else None


def check_begun_with(output: str, name: str, sha256: str, place: str) -> None:
    """Conflict where the job in ``output`` was begun with another input of that name than this.

    ``sha256`` is that of the manifest in ``place``.
    """
    begun = begun_with(output, name)
    if begun not in (None, sha256):
        raise Conflict(
            f"{output} was begun with other {name}: with those whose manifest has the sha256 {begun[:12]}, "
            f"and {place} holds {sha256[:12]}: give the folder that it was begun with, restore that from a "
            "copy if it was changed, or take another output folder"
        )


def rules_of(output: str) -> int | None:
    """The number of rules that the job in a folder was begun under; None where there is none."""
    store = open_output(output)
    there = known_description(store, newest_begun(store))
    return int(there["parts"].get(RULES, 1)) if there else None


def parts(
    config: Config,
    stage: str,
    inputs: dict[str, str],
    *,
    resolved: Mapping[str, Any] | None = None,
    rules: int | None = None,
) -> dict[str, Any]:
    """Parts of a fingerprint.

    They are the configuration without placement, hashes of the inputs, library versions, and rules above 1.
    """
    settled = {
        name: value.content() if isinstance(value, Config) else value
        for name, value in (resolved or {}).items()
    }
    rules = rules or len(STAGE_RULES[stage])
    return {
        "config": config.content() | settled,
        "inputs": inputs,
        "libraries": {name: version(name).split("+")[0] for name in LIBRARIES},
        **({RULES: rules} if rules > 1 else {}),
    }


def comparison(
    config: type[Config],
    stage: str,
    *,
    resolved: Mapping[str, Any] | None = None,
    rules: int | None = None,
) -> Comparison:
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
        rules=STAGE_RULES[stage][:rules],
    )
