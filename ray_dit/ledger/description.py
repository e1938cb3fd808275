"""``_job.json``: what a folder was begun with, held against what is asked for now; knows no objects."""

import hashlib
from collections.abc import Iterable, Mapping

from ray_dit.errors import Conflict, Damaged, NotFound, UserError
from ray_dit.ledger.comparison import LIBRARIES, Comparison
from ray_dit.ledger.manifest import LAST_GENERATION, generation_tag, job_key, last_generation, manifest_key
from ray_dit.ledger.restore import overwrite
from ray_dit.ledger.results import Facts, parse_manifest
from ray_dit.ledger.stored_json import Json, canonical, read_json
from ray_dit.ledger.writers import WRITERS
from ray_dit.storage.store import Store

FIELDS = ("format", "stage", "parts", "extends", "fingerprint")
"""Of a description; the manifest repeats them."""


def fingerprint_of(description: Mapping[str, Json]) -> str:
    """The hash of a description without the fingerprint in it."""
    rest = {name: value for name, value in description.items() if name != "fingerprint"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def stored_description(store: Store, generation: int) -> dict[str, Json]:
    """A generation's description; NotFound, and Damaged unless its parts have its fingerprint."""
    key = job_key(generation)
    there = read_json(store, key)
    if there.get("fingerprint") != fingerprint_of(there):
        raise Damaged(
            f"{store.where(key)} is damaged: its parts do not have its fingerprint; restore it from a copy, "
            "or take another output folder"
        )
    return there


def from_manifest(store: Store, generation: int) -> dict[str, Json] | None:
    """The description as the generation's manifest repeats it; None where that is not there or damaged."""
    try:
        manifest = read_json(store, manifest_key(generation), absent=None)
    except Damaged:
        return None
    there = {name: manifest[name] for name in FIELDS if name in manifest} if manifest else {}
    return there if "parts" in there and there.get("fingerprint") == fingerprint_of(there) else None


def read_description(store: Store, generation: int, ours: Mapping[str, Json]) -> dict[str, Json]:
    """The generation's description; one that is damaged is put back where the folder shows what it was.

    The manifest repeats it. Without one, those who made objects wrote down the fingerprint: if it is that of
    ``ours``, which is what would be written now, it was ours. Otherwise Damaged, if it can't be read at all.
    """
    try:
        return stored_description(store, generation)
    except Damaged:
        there = from_manifest(store, generation)
        if there is None and writers_fingerprints(store, generation) == {ours["fingerprint"]}:
            there = dict(ours)
        if there is None:
            return read_json(store, job_key(generation))
    overwrite(store, job_key(generation), canonical(there))
    return there


def writers_fingerprints(store: Store, generation: int) -> set[str]:
    """The fingerprints under which objects of a generation were made, as far as that was written down."""
    folder = f"{WRITERS}{generation_tag(generation)}/"
    return {str(read_json(store, info.key).get("fingerprint")) for info in store.list(folder)}


def same_but_parts(there: Json, ours: Json) -> bool:
    """Whether both are of one stage and format, and extend the same job or none."""
    return {**there, "parts": None, "fingerprint": None} == {**ours, "parts": None, "fingerprint": None}


def extends(store: Store, generation: int) -> dict[str, str]:
    """What ties a generation to the one before, which must be finished."""
    if not generation:
        return {}
    key = manifest_key(generation - 1)
    before = read_json(store, key, absent=None)
    if before is None:
        raise UserError(f"{store.uri} is unfinished: finish it before it is extended")
    return {"extends": parse_manifest(before, Facts, store.where(key)).sha256}


def after(store: Store, generation: int) -> int:
    """The number of the generation that extends this one; UserError where two digits do not hold it."""
    if generation == LAST_GENERATION:
        raise UserError(
            f"{store.uri} has been extended {generation} times, which is as often as can be: take another "
            "output folder"
        )
    return generation + 1


def newest_begun(store: Store) -> int:
    """The newest generation that was begun: the one after the last manifest where it has a description."""
    newest = last_generation(store)
    return newest + 1 if store.head(job_key(newest + 1)) is not None else newest


def generation_of(
    store: Store, parts: Mapping[str, Json], comparison: Comparison, *, libraries: bool = True
) -> int:
    """The newest generation that was begun with these parts; where there is none, the newest of all.

    Other ``libraries`` make no difference where those do not count.
    """
    newest = newest_begun(store)
    for generation in range(newest, -1, -1):
        there = known_description(store, generation)
        if there is not None and comparison.same(there["parts"], parts, libraries=libraries):
            return generation
    return newest


def known_description(store: Store, generation: int) -> dict[str, Json] | None:
    """A generation's description, as far as the folder still shows it; None also where it was not begun."""
    try:
        return stored_description(store, generation)
    except (Damaged, NotFound):
        return from_manifest(store, generation)


def check_extension(
    store: Store,
    comparison: Comparison,
    there: Mapping[str, Json],
    ours: Mapping[str, Json],
    may_change: Iterable[str],
    accept_fingerprint: bool,
) -> None:
    """Conflict where parts differ in anything that an extension has to leave as it was."""
    free = (*may_change, LIBRARIES) if accept_fingerprint else tuple(may_change)
    changed = {
        name: pair
        for name, pair in comparison.differences(there, ours).items()
        if not only_differs_in(free, [name])
    }
    if not changed:
        return
    ways = "give what it was made with, or take another output folder"
    if all(name.startswith(f"{LIBRARIES}.") for name in changed):
        ways = "go back to those versions, or add --accept-fingerprint to extend it with these"
    raise Conflict(
        f"{store.uri} can't be extended with other settings than it was made with ({_shown(changed)}): {ways}"
    )


def only_differs_in(parts: Iterable[str], names: Iterable[str]) -> bool:
    """Whether all these dotted names are among ``parts`` or lie in one of them."""
    free = tuple(parts)
    return all(any(name == part or name.startswith(f"{part}.") for part in free) for name in names)


def difference(store: Store, there: Json, ours: Json, comparison: Comparison, generation: int = 0) -> str:
    """The sentence that refuses a job whose folder belongs to another one."""
    if there["stage"] != ours["stage"]:
        return f"{store.uri} belongs to {there['stage']}, not {ours['stage']}: take another output folder"
    if there["format"] != ours["format"]:
        return (
            f"{store.uri} has format {there['format']}, not {ours['format']}: use the ray-dit that began it"
        )
    changed = comparison.differences(there["parts"], ours["parts"])
    ways = way_out(store, "take another output folder, or go back to what it was begun with", generation)
    if comparison.same(there["parts"], ours["parts"], libraries=False):
        ways = "go back to those versions, or add --accept-fingerprint to finish it with these"
    return f"{store.uri} was begun with other settings ({_shown(changed)}): {ways}"


def way_out(store: Store, ways: str, generation: int = 0) -> str:
    """What to do about a folder that is not ours: these ways, or to delete it where nothing was made."""
    if generation:
        tag = generation_tag(generation)
        if not any(True for part in ("_markers", "_plain") for _ in store.list(f"{part}{tag}/")):
            return (
                "nothing was made of this extension yet, so delete "
                f"{job_key(generation)} if no run is under way, or {ways}"
            )
    elif all(info.key.startswith(("_job", "_runs/", "_accepted/")) for info in store.list()):
        return f"nothing was made there yet, so delete it if no run is under way, or {ways}"
    return ways


def _shown(changed: Mapping[str, tuple[Json, Json]]) -> str:
    """The first of the parts that differ, with what they were and are."""
    shown = ", ".join(
        f"{name}: {_short(old)} -> {_short(new)}" for name, (old, new) in [*changed.items()][:6]
    )
    return shown + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")


def _short(value: Json) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
