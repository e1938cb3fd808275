"""Which generation of a folder's job a number belongs to that only grows: images of a dataset, steps.

Reads what the generations were begun with; knows no stage.
"""

from typing import Any

from ray_dit.errors import Damaged, UserError
from ray_dit.ledger.description import known_description, newest_begun
from ray_dit.ledger.manifest import job_key, last_generation, manifest_key
from ray_dit.storage.open import open_output
from ray_dit.storage.store import Store


def totals_of(output: str, setting: str, asked: int, what: str, *, extend: bool) -> tuple[int, ...]:
    """The number at the end of each generation of the job in ``output``, rising, with ``asked`` among them.

    It is the last one where it begins an extension, and alone where the folder has no generation of that
    number, in which case its job is refused. UserError where an extension would add nothing, or another one
    is under way. ``setting`` is the number's name in the configuration, ``what`` it counts.
    """
    store = open_output(output)
    totals = tuple(settings[setting] for settings in settings_begun(store, setting))
    if not extend:
        return totals if asked in totals else (asked,)
    if len(totals) > 1 and asked != totals[-1] and store.head(manifest_key(len(totals) - 1)) is None:
        raise UserError(
            f"{output} is being extended to {totals[-1]} {what}: finish that first, with that number and "
            "--extend"
        )
    if totals and asked < totals[-1]:
        raise UserError(f"{output} has {totals[-1]} {what} already: ask for more to extend it")
    return totals if asked in totals else (*totals, asked)


def settings_begun(store: Store, setting: str) -> list[dict[str, Any]]:
    """The settings each generation was begun with; [] where one of them does not have this number.

    Damaged where an extended folder does not tell.
    """
    settings: list[dict[str, Any]] = []
    for generation in range(newest_begun(store) + 1):
        there = known_description(store, generation)
        if there is None and last_generation(store):
            raise Damaged(
                f"{store.where(job_key(generation))} is damaged, and so is the manifest that repeats it: "
                "restore one of them from a copy"
            )
        settings.append((there or {}).get("parts", {}).get("config", {}))
    return settings if all(isinstance(each.get(setting), int) for each in settings) else []
