"""The images a stage reads, listed once into a plan.

Which rows are held out is a function of an image's key, so every stage that reads the same images agrees on
it.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from ray_dit.config import ImagesConfig
from ray_dit.core.order import are_heldout
from ray_dit.core.to_rgb import Decoding
from ray_dit.errors import UserError
from ray_dit.folders.listing import HERE, ListedBy, ListPiece, rows_of
from ray_dit.folders.pinned import Pinned
from ray_dit.folders.sources import open_images, read_labels
from ray_dit.formats.deterministic import array_sha256, damaged, parquet_bytes, read_parquet
from ray_dit.formats.image_format import Listing, Place, input_sha256
from ray_dit.formats.registry import format_of, input_format
from ray_dit.formats.rows import OBJECT, Column, concatenated, packed
from ray_dit.formats.texts import Texts
from ray_dit.storage.open import is_inside
from ray_dit.storage.store import UNKNOWN_SIZE, Store

FOLDER = "folder"
"""The format that plans name none for."""


_COLUMNS = {"key": pa.string(), "label": pa.int64(), "heldout": pa.bool_()}
_SIZE = {"size": pa.int64()}
"""A column that plans of the first version lack."""
_VERSION = {"version": pa.int64()}


class _PlanFacts(BaseModel):
    """What a plan says beside its rows."""

    classes: tuple[str, ...]
    size: int
    sha256: str
    format: str = FOLDER
    decoding: Decoding = Decoding()


@dataclass(frozen=True)
class ImagePlan:
    """All images in key order; ``labels`` index ``classes``, ``heldout`` marks what no model trains on."""

    uri: str
    size: int
    classes: tuple[str, ...]
    keys: Texts
    labels: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    sha256: str
    """Stands for the input in fingerprints; see ``Listing``."""
    format: str = FOLDER
    """Name of the format the images are read in."""
    places: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Where each image lies in its object, for formats of several images per object; see ``Listing``."""
    decoding: Decoding = Decoding()
    """How images of other kinds than RGB become RGB."""
    sizes: NDArray[np.int64] | None = None
    """Bytes of the object each image lies in; None in a plan of the first version."""
    versions: NDArray[np.int64] | None = None
    """Which version of it, see ``Listing``; None where that is not known. Not a part of the plan's bytes: the
    same images have other versions in another place."""

    @classmethod
    def of(cls, listing: Listing, config: ImagesConfig) -> "ImagePlan":
        """The plan of what a format has listed."""
        return cls(
            uri=config.uri,
            size=config.size,
            classes=listing.classes,
            keys=listing.keys,
            labels=listing.labels,
            heldout=are_heldout(listing.keys, config.heldout),
            sha256=input_sha256(listing),
            format=listing.format,
            places=listing.places,
            decoding=Decoding(config.background, config.exif_orientation, config.white_level),
            sizes=listing.sizes,
            versions=listing.versions,
        )

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.keys)

    @property
    def knows_versions(self) -> bool:
        """Whether the version of any object is known."""
        return self.versions is not None and bool(self.versions.any())

    def rows(self, *, heldout: bool) -> NDArray[np.int64]:
        """Row numbers of the held-out or of the training images."""
        return np.flatnonzero(self.heldout == heldout)

    def take(self, rows: NDArray[np.int64]) -> "ImagePlan":
        """The plan of these images alone."""
        return self._select(rows)

    def part(self, first: int, stop: int) -> "ImagePlan":
        """The plan of the images of rows from ``first`` to ``stop`` alone."""
        return self._select(slice(first, stop))

    def parts(self) -> Iterator["ImagePlan"]:
        """All of its images; as of a plan that is read in parts."""
        yield self

    def _select(self, index: NDArray[np.int64] | slice) -> "ImagePlan":
        return replace(
            self,
            keys=self.keys[index],
            labels=self.labels[index],
            heldout=self.heldout[index],
            places={name: column[index] for name, column in self.places.items()},
            sizes=None if self.sizes is None else self.sizes[index],
            versions=None if self.versions is None else self.versions[index],
        )

    def place(self, row: int) -> Place:
        """Where a row's image lies."""
        return {name: column[row] for name, column in self.places.items()}

    def object_key(self, row: int) -> str:
        """The object a row's image lies in."""
        return str(self.place(row).get(OBJECT, self.keys[row]))

    @property
    def shares_objects(self) -> bool:
        """Whether images lie in one object with others: its name alone does not say where."""
        return bool(self.places.keys() - {OBJECT})

    def source(self, store: Store, row: int) -> Pinned:
        """What a row's image is read from: its object, as planned."""
        size = UNKNOWN_SIZE if self.sizes is None else int(self.sizes[row])
        return Pinned(store, size, 0 if self.versions is None else int(self.versions[row]))

    def stored_bytes(self) -> int:
        """Bytes of the objects the images lie in; 0 where the plan does not tell."""
        return stored_bytes([self])

    def by_size(self) -> "ImagePlan":
        """The plan of a copy, whose objects have other versions: they are known by their sizes alone."""
        return replace(self, versions=None)

    def versions_bytes(self) -> bytes | None:
        """The versions as Parquet; None where no object has one."""
        if self.versions is None or not self.versions.any():
            return None
        return parquet_bytes(pa.table({"version": self.versions}), {"sha256": array_sha256(self.versions)})

    def with_versions(self, data: bytes) -> "ImagePlan":
        """The plan with what ``versions_bytes`` gave; UserError if it gave something else."""
        where = f"the versions of the images in {self.uri}"
        table, facts = read_parquet(data, _VERSION, where=where)
        versions = table["version"].to_numpy()
        if len(versions) != len(self.keys) or facts != {"sha256": array_sha256(versions)}:
            raise damaged(where, ValueError("these are not the versions that were written"))
        return replace(self, versions=versions)

    def in_order_of(self, classes: Sequence[str]) -> "ImagePlan":
        """The plan with its classes numbered in this order, which names all of them."""
        number = {name: label for label, name in enumerate(classes)}
        labels = np.array([number[name] for name in self.classes], np.int64)[self.labels]
        return replace(self, classes=tuple(classes), labels=labels)

    def facts(self) -> dict[str, Any]:
        """What it says beside its rows, as JSON."""
        facts: dict[str, Any] = {"classes": self.classes, "size": self.size, "sha256": self.sha256}
        if self.format != FOLDER:  # plans were made before there were other formats, and name none
            facts["format"] = self.format
        if self.decoding != Decoding():  # nor other ways to decode
            facts["decoding"] = asdict(self.decoding)
        return facts

    def to_bytes(self) -> bytes:
        """The plan as Parquet."""
        objects = {} if self.sizes is None else {"size": self.sizes}
        own = {"key": self.keys, "label": self.labels, "heldout": self.heldout, **objects}
        columns: dict[str, Any] = {name: packed(column) for name, column in {**own, **self.places}.items()}
        texts = {name: column for name, column in columns.items() if isinstance(column, Texts)}
        columns |= {name: column.to_arrow().cast(pa.string()) for name, column in texts.items()}
        return parquet_bytes(pa.table(columns), self.facts())

    @classmethod
    def empty(cls, facts: Any, uri: str) -> "ImagePlan":
        """A plan that says as much beside its rows, and has none; ValueError where ``facts`` are none."""
        known = _PlanFacts.model_validate(facts)
        return cls(
            uri=uri,
            size=known.size,
            classes=known.classes,
            keys=Texts.of(()),
            labels=np.zeros(0, np.int64),
            heldout=np.zeros(0, np.bool_),
            sha256=known.sha256,
            format=known.format,
            decoding=known.decoding,
        )

    @classmethod
    def from_bytes(cls, data: bytes, uri: str) -> "ImagePlan":
        """The plan ``to_bytes`` wrote, of the images at ``uri``; UserError if it did not."""
        where = f"the plan of the images in {uri}"
        table, facts = read_parquet(data, _COLUMNS, where=where)
        names = {*table.column_names}
        objects = _SIZE if names & _SIZE.keys() else {}
        places = [name for name in table.column_names if name not in (*_COLUMNS, *objects)]
        try:
            plan = cls.empty(facts, uri)
            labels = table["label"].to_numpy()
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(plan.classes):
                raise ValueError("a label is no class")
            if any(table[name].type != kind for name, kind in objects.items()):
                raise ValueError("the sizes are of another type")
            return replace(
                plan,
                keys=Texts.from_column(table["key"]),
                labels=labels,
                heldout=table["heldout"].to_numpy(),
                places={name: _column(table[name]) for name in places},
                sizes=table["size"].to_numpy() if objects else None,
            )
        except (pa.ArrowException, ValueError) as error:
            raise damaged(where, error) from error


def joined(parts: Sequence[ImagePlan]) -> ImagePlan:
    """The plan of the images of several parts of one, in their order."""
    first = parts[0]
    sizes = [part.sizes for part in parts if part.sizes is not None]
    known = any(part.versions is not None for part in parts)
    versions = [np.zeros(part.count, np.int64) if part.versions is None else part.versions for part in parts]
    return replace(
        first,
        keys=Texts.joined([part.keys for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        heldout=np.concatenate([part.heldout for part in parts]),
        places={name: concatenated([part.places[name] for part in parts]) for name in first.places},
        sizes=np.concatenate(sizes) if sizes else None,
        versions=np.concatenate(versions) if known else None,
    )


def stored_bytes(parts: Iterable[ImagePlan]) -> int:
    """Bytes of the objects the images of all parts of a plan lie in; 0 where the plan does not tell."""
    alone, shared = 0, dict[str, int]()
    for part in parts:
        sizes = np.maximum(np.zeros(part.count, np.int64) if part.sizes is None else part.sizes, 0)
        objects = packed(part.places[OBJECT]) if OBJECT in part.places else None
        if isinstance(objects, Texts):
            names, numbers = objects.values()
            used, rows = np.unique(numbers, return_index=True)
            shared |= zip([names[number] for number in used.tolist()], sizes[rows].tolist(), strict=True)
        else:
            alone += int(sizes.sum())
    return alone + sum(shared.values())


def _column(column: Any) -> Column:
    is_text = pa.types.is_string(column.type)
    return Texts.from_column(column).repeating() if is_text else column.to_numpy()


def refuse_output_inside(output: str, config: ImagesConfig) -> None:
    """UserError for an output among the images, which would change what a rerun reads."""
    if is_inside(output, config.uri):
        raise UserError(
            f"the output {output} lies in the image folder {config.uri}, where it would be read as images: "
            "give an --output outside of it"
        )


def list_images(config: ImagesConfig, by: ListedBy = HERE) -> Listing:
    """Lists the images, and prints what is read for it, where that is much, and what was left out.

    UserError for a missing or empty folder and for a class without images.
    """
    source = open_images(config.uri)
    found = config.format or format_of(source)

    def tell(what: str) -> None:
        print(f"{config.uri}: {what}", file=sys.stderr, flush=True)

    reader, task = input_format(found), ListPiece(config.uri, found, by.keep)
    rows = rows_of(reader, source, task, by.over, tell)
    listing = reader.list_images(source, read_labels(config.labels), rows)
    if listing.note:
        tell(listing.note)
    return replace(listing, format=found)


def plan_images(config: ImagesConfig, by: ListedBy = HERE) -> ImagePlan:
    """The plan of all images that are there now; UserError as ``list_images``."""
    return ImagePlan.of(list_images(config, by), config)
