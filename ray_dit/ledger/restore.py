"""Objects put back where they are missing or damaged; knows nothing of how their bytes are made."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

from ray_dit.errors import Conflict, Damaged, NotFound, UserError
from ray_dit.storage.store import Store

T = TypeVar("T")


def hash_of(store: Store, key: str) -> str | None:
    """sha256 of an object's bytes, read anew; None where it is missing."""
    try:
        return store.sha256(key)
    except NotFound:
        return None


def get_or_none(store: Store, key: str) -> bytes | None:
    """An object's bytes as they are there, whatever hash was stored with them; None where it is missing."""
    try:
        with store.open_file(key) as file:
            return file.read()
    except NotFound:
        return None


def put_back(store: Store, key: str, data: bytes, sha256: str) -> bool:
    """Puts ``data`` where the object of that hash is missing or damaged; False where it is whole.

    UserError if these bytes do not have the hash. A damaged object is replaced only if it is still the one
    that was looked at.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{store.where(key)} cannot be repaired here, because this machine makes other bytes of it: "
            "repair it on the kind of machine and with the versions (of ray-dit and its libraries) it was "
            "made with"
        )
    info = store.head(key)
    if info is None:
        return store.put(key, data)
    if store.sha256(key) == sha256:
        return False
    try:
        store.replace(key, data, if_match=info.etag or "")
    except Conflict:
        if store.sha256(key) != sha256:
            raise
        return False  # another writer was faster
    return True


def put_file_back(store: Store, key: str, data: bytes) -> bool:
    """As ``put_back``, of an object whose hash is that of these bytes, since what lists it says so."""
    return put_back(store, key, data, hashlib.sha256(data).hexdigest())


def overwrite(store: Store, key: str, data: bytes) -> None:
    """Puts ``data`` at ``key`` whatever is there, for what is known to be damaged."""
    info = store.head(key)
    if info is None:
        store.put(key, data)
    else:
        store.replace(key, data, if_match=info.etag or "")


def read_whole(store: Store, key: str, sha256: str) -> bytes:
    """An object's bytes; Damaged unless they have the hash."""

    def read() -> bytes | None:
        data = store.get(key)
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    return read_twice(store, key, read)


def read_twice(store: Store, key: str, read: Callable[[], T | None]) -> T:
    """What ``read`` returns of an object; None, where that is not what was written, is Damaged.

    It is asked once more first: bytes may have changed on their way, and then are others the second time.
    """
    for _ in range(2):
        found = read()
        if found is not None:
            return found
    raise damaged(store, key)


def damaged(store: Store, key: str) -> Damaged:
    """What is said of an object that does not have its hash."""
    return Damaged(
        f"{store.where(key)} does not hold what was written there: `ray-dit verify {store.uri}` tells what "
        "else is damaged, and what to do"
    )
