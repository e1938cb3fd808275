"""What must hold after every run, however disturbed; Difference where it does not.

Objects are read straight from where they lie, not by way of the proxy.
"""

import hashlib
from collections.abc import Mapping
from itertools import islice

from ray_dit.ledger.maintenance import gc, verify
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store, ahead
from tests.faults.harness.jobs import Stage, check_ids

Contents = Mapping[str, str]
"""sha256 of each object by key."""


class Difference(AssertionError):
    """A run that did not end as an undisturbed one."""


def contents(store: Store) -> Contents:
    """Every object but the records of runs, which have clocks in them, and trials of the target."""
    keys = [info.key for info in store.list()]
    keys = [key for key in keys if "_runs" not in key.split("/") and "_check" not in key.split("/")]

    def digest(key: str) -> str:
        return hashlib.sha256(store.get(key)).hexdigest()

    return dict(zip(keys, ahead(digest, keys, threads=8), strict=True))


def check(stage: Stage, output: str, whole: Contents) -> None:
    """The objects of an undisturbed run, every id once, and nothing that a killed process left."""
    store = open_store(output)
    list(gc(store, older_than=-1))
    found = contents(store)
    wrong = {
        "missing": sorted(whole.keys() - found.keys()),
        "too many": sorted(found.keys() - whole.keys()),
        "other bytes": sorted(key for key in whole.keys() & found.keys() if whole[key] != found[key]),
    }
    if found != whole:
        raise Difference(f"{output}: {', '.join(f'{what} {keys}' for what, keys in wrong.items() if keys)}")
    try:
        check_ids(stage, output)
    except AssertionError as error:
        raise Difference(str(error)) from error
    if problems := [str(problem) for problem in islice(verify(store), 3)]:
        raise Difference(f"{output}: verify says {problems}")
    if left := list(gc(store, older_than=-1)):
        raise Difference(f"{output}: gc left {left}")
