"""A list of images to be made, a row for each, read from JSONL, CSV or Parquet.

Knows no model but the names of its classes, and nothing of how images are made.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_dit.config.sampler import SamplerName
from ray_dit.errors import NotFound, UserError, first_message
from ray_dit.formats.clutter import suffix_of
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.label_file import class_name
from ray_dit.formats.labels import Labels
from ray_dit.storage.open import open_store

LABELS = ("label", "class", "class_name", "class_label")
"""Names of the column that gives the class."""
SETTINGS = ("seed", "guidance_scale", "num_inference_steps", "sampler")
"""Names of the columns that may stand beside it."""
MOST_STEPS, LARGEST_SCALE = 1000, 100.0
Row = Mapping[str, Any]


@dataclass(frozen=True)
class ImageRequests:
    """What each image is to be, a value per image in the order of the list."""

    labels: NDArray[np.int64]
    """Zeros for a model without classes."""
    seeds: NDArray[np.int64]
    """-1 where the job's seed and the image's number make it."""
    scales: NDArray[np.float64]
    """Guidance scales; NaN where the sampler's holds."""
    sampler: NDArray[np.int64]
    """Its number among ``samplers``."""
    samplers: tuple[tuple[str | None, int | None], ...]
    """Name and number of steps of each sampler, None for the job's; the first is the job's own."""

    @property
    def sha256(self) -> str:
        """Stands for the list in fingerprints: the same for lists that mean the same."""
        digest = hashlib.sha256(repr(self.samplers).encode())
        for column in (self.labels, self.seeds, self.scales, self.sampler):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def take(self, rows: NDArray[np.int64]) -> "ImageRequests":
        """Those of these rows."""
        columns = {name: getattr(self, name)[rows] for name in ("labels", "seeds", "scales", "sampler")}
        return replace(self, **columns)


def read_requests(uri: str, labels: Labels) -> ImageRequests:
    """The list at a path or URI; UserError, naming the row, for what cannot be made, NotFound for no file."""
    folder, _, name = uri.rpartition("/")
    try:
        data = open_store(folder or "/").get(name)
    except NotFound as error:
        raise NotFound(f"the list of requests {uri} does not exist: check --requests") from error
    try:
        rows = _rows(data, suffix_of(uri))
    except (ValueError, csv.Error, pa.ArrowException, OSError) as error:
        raise UserError(
            f"the list of requests {uri} can't be read ({first_message(error)}): give JSONL, CSV or Parquet "
            "with a column label, and where wanted seed, guidance_scale, num_inference_steps and sampler"
        ) from error
    return _requests(rows, labels, uri)


def _rows(data: bytes, suffix: str) -> Iterable[Row]:
    if suffix == ".parquet":
        table = pq.read_table(io.BytesIO(data))
        names = table.column_names
        columns = (column.to_pylist() for column in table.columns)  # those of categories by their values
        return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    text = data.decode("utf-8-sig")
    if suffix in (".jsonl", ".ndjson"):
        return [_json_row(line) for line in text.splitlines() if line.strip()]
    if suffix in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",", strict=True)
        return [*reader]
    raise ValueError(f"its name ends in {suffix or 'no suffix'}")


def _json_row(line: str) -> Row:
    row: Any = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"{line[:40]!r} is no object")
    return cast("Row", row)


def _requests(rows: Iterable[Row], labels: Labels, uri: str) -> ImageRequests:
    numbers: list[int] = []
    seeds: list[int] = []
    scales: list[float] = []
    sampler: list[int] = []
    samplers: dict[tuple[str | None, int | None], int] = {(None, None): 0}
    known: dict[tuple[bool, str], int] = {}
    for number, row in enumerate(rows, start=1):
        try:
            _refuse_unknown(row)
            told = {name: value for name, value in row.items() if value not in (None, "")}
            numbers.append(_label(told, labels, known))
            seeds.append(_whole(told, "seed", 0, (1 << 63) - 1, absent=-1))
            scales.append(_scale(told))
            key = (_sampler(told), _whole(told, "num_inference_steps", 1, MOST_STEPS, absent=0) or None)
            sampler.append(samplers.setdefault(key, len(samplers)))
        except (ValueError, UserError) as error:
            raise UserError(f"row {number} of {uri}: {error}") from error
    if not numbers:
        raise UserError(f"the list of requests {uri} is empty: give a row for each image")
    return ImageRequests(
        np.array(numbers, np.int64),
        np.array(seeds, np.int64),
        np.array(scales, np.float64),
        np.array(sampler, np.int64),
        tuple(samplers),
    )


def _refuse_unknown(row: Row) -> None:
    for name in row:
        if name not in LABELS and name not in SETTINGS:
            raise ValueError(
                f"there is no setting {str(name)[:40]!r}; the columns are label, {', '.join(SETTINGS)}"
            )


def _label(row: Row, labels: Labels, known: dict[tuple[bool, str], int]) -> int:
    given = [row[name] for name in LABELS if name in row]
    if not given and not len(labels):
        return 0
    told = class_name(given[0]) if len(given) == 1 else None
    if told is None:
        raise ValueError("it gives no class: put its name or number into the column label")
    is_number = not isinstance(given[0], str)  # a name may be a number too, and comes first where it is text
    key = (is_number, told)
    if key not in known:
        known[key] = labels.resolve(int(told) if is_number else told)
    return known[key]


def _whole(row: Row, name: str, low: int, high: int, *, absent: int) -> int:
    """A whole number in [low, high]; numbers may be text, as in CSV."""
    value = row.get(name)
    if value is None or _is_nan(value):
        return absent
    told = class_name(value)
    if told is None or not told.removeprefix("-").isdecimal() or not low <= int(told[:20]) <= high:
        raise ValueError(f"{name} is {str(value)[:40]}, and is to be a whole number from {low} to {high}")
    return int(told)


def _scale(row: Row) -> float:
    value = row.get("guidance_scale")
    if value is None or _is_nan(value):
        return math.nan
    try:
        scale = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        scale = -1.0
    if not 0 <= scale <= LARGEST_SCALE:
        raise ValueError(
            f"guidance_scale is {str(value)[:40]}, and is to be a number from 0 to {LARGEST_SCALE:g}"
        )
    return scale


def _sampler(row: Row) -> str | None:
    name = row.get("sampler")
    known: tuple[str, ...] = get_args(SamplerName)
    if name is not None and name not in known:
        raise ValueError(f"there is no sampler {str(name)[:40]!r}: take one of {', '.join(known)}")
    return None if name is None else str(name)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
