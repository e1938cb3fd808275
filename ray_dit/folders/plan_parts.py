"""Plans of many images, stored in parts and read part by part, so that no reader's memory grows with them.

Up to ``PART_ROWS`` images, and in folders of earlier versions always, a plan is one object. A larger one is
an object per ``PART_ROWS`` images, each a plan of its own images, and a head that lists their hashes. Knows
no store and no job.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_dit.core.to_rgb import Decoding
from ray_dit.folders.images import ImagePlan, joined, stored_bytes
from ray_dit.formats.deterministic import damaged, parquet_bytes, read_parquet

PART_ROWS = 1 << 16
"""Images of a part; a plan made again must have the same."""
_COLUMNS = {"rows": pa.int64(), "bytes": pa.int64(), "sha256": pa.string()}


@dataclass(frozen=True)
class Part:
    """What a head says of a part."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PlanInParts:
    """A plan like ``ImagePlan``, whose images are read when they are asked for."""

    empty: ImagePlan
    """What it says beside its rows."""
    listed: tuple[Part, ...]
    read: Callable[[int], ImagePlan]
    """Reads a part by its number; should keep a few. UserError where it is missing or damaged."""
    knows_versions: bool = True
    """Whether objects are known by more than their sizes, where versions were noted."""

    @property
    def uri(self) -> str:
        """As of an ``ImagePlan``, and so are the others."""
        return self.empty.uri

    @property
    def size(self) -> int:
        return self.empty.size

    @property
    def classes(self) -> tuple[str, ...]:
        return self.empty.classes

    @property
    def sha256(self) -> str:
        return self.empty.sha256

    @property
    def format(self) -> str:
        return self.empty.format

    @property
    def decoding(self) -> Decoding:
        return self.empty.decoding

    @property
    def count(self) -> int:
        return sum(part.rows for part in self.listed)

    def parts(self) -> Iterator[ImagePlan]:
        """Plans of some of the images each, in their order."""
        return (self._read(number) for number in range(len(self.listed)))

    def part(self, first: int, stop: int) -> ImagePlan:
        """The plan of the images of rows from ``first`` to ``stop`` alone."""
        ends = list(accumulate(part.rows for part in self.listed))
        found = [
            self._read(number).part(max(first - end + part.rows, 0), stop - end + part.rows)
            for number, (part, end) in enumerate(zip(self.listed, ends, strict=True))
            if first < end and end - part.rows < stop
        ]
        return joined(found) if found else self.empty

    def take(self, rows: NDArray[np.int64]) -> ImagePlan:
        """The plan of these images alone; rows must rise."""
        ends = np.cumsum([part.rows for part in self.listed])
        numbers = np.searchsorted(ends, rows, side="right")
        found = [
            self._read(number).take(rows[numbers == number] - ends[number] + self.listed[number].rows)
            for number in np.unique(numbers).tolist()
        ]
        return joined(found) if found else self.empty

    def by_size(self) -> "PlanInParts":
        """The plan of a copy, see ``ImagePlan``."""
        return replace(self, knows_versions=False)

    def stored_bytes(self) -> int:
        """Bytes of the objects the images lie in."""
        return stored_bytes(self.parts())

    def _read(self, number: int) -> ImagePlan:
        plan = self.read(number)
        return plan if self.knows_versions else plan.by_size()


AnyPlan = ImagePlan | PlanInParts
"""Have in common: ``uri``, ``size``, ``classes``, ``sha256``, ``format``, ``count``, ``parts``, ``part``,
``take``, ``by_size``, ``knows_versions`` and ``stored_bytes``."""


def parts_of(plan: ImagePlan, part_rows: int = PART_ROWS) -> Iterator[ImagePlan]:
    """The parts that a plan is stored in; none where it is one object."""
    if plan.count > part_rows:
        for first in range(0, plan.count, part_rows):
            yield plan.part(first, first + part_rows)


def plan_bytes(plan: ImagePlan, part_rows: int = PART_ROWS) -> bytes:
    """The bytes of its one object, or of its head."""
    listed = [listed_as(part, part.to_bytes()) for part in parts_of(plan, part_rows)]
    return head_bytes(plan, listed) if listed else plan.to_bytes()


def listed_as(part: ImagePlan, data: bytes) -> Part:
    """What a head says of a part that is stored as these bytes."""
    return Part(part.count, len(data), hashlib.sha256(data).hexdigest())


def head_bytes(plan: ImagePlan, listed: Sequence[Part]) -> bytes:
    """The head of a plan in these parts, as Parquet."""
    columns = {name: [vars(part)[name] for part in listed] for name in _COLUMNS}
    return parquet_bytes(pa.table(columns, pa.schema(_COLUMNS)), plan.facts())


def read_head(data: bytes, uri: str) -> tuple[ImagePlan, tuple[Part, ...]] | None:
    """What a head says: the plan without its rows, and its parts; None where a plan is one object.

    UserError for what is neither.
    """
    where = f"the plan of the images in {uri}"
    try:
        names = pq.read_schema(io.BytesIO(data)).names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(where, error) from error
    if "sha256" not in names or "key" in names:
        return None
    table, facts = read_parquet(data, _COLUMNS, where=where)
    try:
        listed = tuple(Part(**row) for row in table.select(list(_COLUMNS)).to_pylist())
        if any(part.rows < 1 or part.bytes < 1 for part in listed):
            raise ValueError("a part without images")
        return ImagePlan.empty(facts, uri), listed
    except ValueError as error:
        raise damaged(where, error) from error
