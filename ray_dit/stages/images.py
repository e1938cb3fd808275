"""The pictures a stage reads: a folder with one sub-folder a class, listed once into a plan, decoded on demand.

A picture's key is its path below the folder; keys in order give the rows. Which rows are held out is a function of the
key, so every stage that reads the same folder agrees on it.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_dit.config import ImagesConfig
from ray_dit.core.media import UnreadableImage, decode
from ray_dit.core.order import is_heldout
from ray_dit.errors import NotFound, UserError
from ray_dit.formats.deterministic import parquet_bytes
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class ImagePlan:
    """All pictures of a folder in key order; ``labels`` index ``classes``, ``heldout`` marks what no model trains on."""

    uri: str
    size: int
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    sha256: str
    """Hash of keys and byte sizes: stands for the input in fingerprints."""

    def rows(self, *, heldout: bool) -> NDArray[np.int64]:
        """Row numbers of the held-out or of the training pictures."""
        return np.flatnonzero(self.heldout == heldout)

    def to_bytes(self) -> bytes:
        """The plan as Parquet, for the actors that read a part of it each."""
        columns = {"key": list(self.keys), "label": self.labels, "heldout": self.heldout}
        return parquet_bytes(
            pa.table(columns), {"classes": self.classes, "size": self.size, "sha256": self.sha256}
        )

    @classmethod
    def from_bytes(cls, data: bytes, uri: str) -> "ImagePlan":
        """The plan ``to_bytes`` wrote, of the pictures at ``uri``."""
        table = pq.read_table(io.BytesIO(data))
        facts = json.loads((table.schema.metadata or {})[b"facts"])
        return cls(
            uri=uri,
            size=facts["size"],
            classes=tuple(facts["classes"]),
            keys=tuple(table["key"].to_pylist()),
            labels=table["label"].to_numpy(),
            heldout=table["heldout"].to_numpy(),
            sha256=facts["sha256"],
        )


@dataclass(frozen=True)
class BadImage:
    """A picture that could not be read, and why."""

    key: str
    reason: str


def plan_images(config: ImagesConfig) -> ImagePlan:
    """Lists the pictures; UserError for a missing or empty folder and for a class without pictures."""
    store = open_store(config.uri)
    found = [(info.key, info.size) for info in store.list() if info.key.lower().endswith(SUFFIXES)]
    found = sorted((key, size) for key, size in found if key.count("/") >= 1)
    if not found:
        raise _nothing_found(store)
    classes = _classes(store, found)
    number = {name: label for label, name in enumerate(classes)}
    keys = tuple(key for key, _ in found)
    return ImagePlan(
        uri=config.uri,
        size=config.size,
        classes=classes,
        keys=keys,
        labels=np.array([number[key.split("/", 1)[0]] for key in keys], dtype=np.int64),
        heldout=np.array([is_heldout(key, config.heldout) for key in keys], dtype=np.bool_),
        sha256=hashlib.sha256(json.dumps(found).encode()).hexdigest(),
    )


def load_images(
    plan: ImagePlan, rows: Iterable[int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[BadImage]]:
    """Reads and centre-crops pictures.

    Returns uint8 [N, S, S, 3], the N row numbers they belong to, and the unreadable ones, in order of ``rows``.
    """
    store = open_store(plan.uri)
    images: list[NDArray[np.uint8]] = []
    kept: list[int] = []
    bad: list[BadImage] = []
    for row in rows:
        data = store.get(plan.keys[row])
        try:
            images.append(decode(data, plan.size))
            kept.append(int(row))
        except UnreadableImage as error:
            bad.append(BadImage(plan.keys[row], str(error)))
    shape = (len(images), plan.size, plan.size, 3)
    stacked = np.stack(images) if images else np.zeros(shape, np.uint8)
    return stacked, np.array(kept, dtype=np.int64), bad


def check_bad(bad: int, total: int, max_bad: float, where: str, first: Sequence[BadImage]) -> None:
    """UserError when more pictures are unreadable than allowed."""
    if bad > max_bad * total:
        example = f", the first is {first[0].key!r} ({first[0].reason})" if first else ""
        raise UserError(
            f"{bad} of {total} pictures in {where} cannot be read, more than images.max_bad = {max_bad} allows{example}: "
            "repair or remove them, or raise --images.max-bad"
        )


def _classes(store: Store, found: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    names = {key.split("/", 1)[0] for key, _ in found}
    path = _local_folder(store)
    folders = {entry.name for entry in path.iterdir() if entry.is_dir()} if path is not None else set[str]()
    empty = sorted(name for name in folders - names if not name.startswith((".", "_")))
    if empty:
        raise UserError(
            f"the class folder {empty[0]!r} in {store.uri} holds no pictures: add some ({', '.join(SUFFIXES)}) or remove "
            "the folder"
        )
    return tuple(sorted(names, key=natural_key))


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts 2 before 10 and otherwise as text."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts if part)


def _local_folder(store: Store) -> Path | None:
    inside = store.local_path("_")
    return inside.parent if inside is not None else None


def _nothing_found(store: Store) -> UserError:
    path = _local_folder(store)
    if path is not None and not path.exists():
        return NotFound(
            f"the image folder {store.uri} does not exist: give a folder with one sub-folder a class"
        )
    if path is not None and not path.is_dir():
        return UserError(f"{store.uri} is a file where a folder with one sub-folder a class is wanted")
    return UserError(
        f"no pictures found in {store.uri}: give a folder with one sub-folder a class, holding files that end in "
        + ", ".join(SUFFIXES)
    )
