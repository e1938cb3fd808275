"""The rows of a piece as bytes, by which they are kept and handed from one process to another.

Parquet, to be checked by its hash before it is read. Knows no store and no format.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from ray_dit.formats.deterministic import damaged, parquet_bytes, read_parquet
from ray_dit.formats.rows import Column, Rows
from ray_dit.formats.texts import Texts

_COLUMNS = {"name": pa.string()}
_PLACE = "at "
"""What the columns of places begin with."""


class _Facts(BaseModel):
    same: dict[str, str | int] = {}
    """Columns with one value in all rows, which take no memory."""
    declared: tuple[str, ...] = ()
    keyed: bool = False
    left_out: dict[str, int] = {}


def rows_bytes(rows: Rows, where: str) -> bytes:
    """The rows of a piece of the source at ``where``; UserError for a name that is no text."""
    rows = rows.packed(where)
    columns: dict[str, Any] = {"name": rows.names, "size": rows.sizes, "version": rows.versions}
    columns |= {"class": rows.classes} if rows.classes is not None else {}
    columns |= {"label": rows.labels} if rows.labels is not None else {}
    columns |= {f"{_PLACE}{name}": column for name, column in rows.places.items()}
    texts = {name: column for name, column in columns.items() if isinstance(column, Texts)}
    same: dict[str, str | int] = {
        name: column[0] for name, column in texts.items() if name != "name" and column.are_one()
    }
    of_object = {"size": rows.sizes, "version": rows.versions}
    same |= {name: int(column[0]) for name, column in of_object.items() if _is_one(column)}
    stored = {name: column.to_arrow().cast(pa.string()) for name, column in texts.items()}
    table = pa.table({name: column for name, column in (columns | stored).items() if name not in same})
    facts = {"same": same, "declared": rows.declared, "keyed": rows.keyed, "left_out": rows.left_out}
    return parquet_bytes(table, facts)


def read_rows(data: bytes, where: str) -> Rows:
    """What ``rows_bytes`` was given; UserError for what it did not write."""
    table, facts = read_parquet(data, _COLUMNS, where=where)
    try:
        known = _Facts.model_validate(facts)
    except ValueError as error:
        raise damaged(where, error) from error
    columns: dict[str, Column] = {name: _column(table[name]) for name in table.column_names}
    columns |= {name: _same(value, table.num_rows) for name, value in known.same.items()}
    taken: dict[str, Any] = {name: column for name, column in columns.items() if not name.startswith(_PLACE)}
    return Rows(
        names=taken["name"],
        sizes=taken["size"],
        versions=taken["version"],
        places={name.removeprefix(_PLACE): columns[name] for name in columns if name not in taken},
        classes=taken.get("class"),
        declared=known.declared,
        labels=taken.get("label"),
        keyed=known.keyed,
        left_out=Counter(known.left_out),
    )


def _is_one(column: NDArray[np.int64]) -> bool:
    return len(column) > 0 and bool((column == column[0]).all())


def _same(value: str | int, count: int) -> Column:
    return Texts.same(value, count) if isinstance(value, str) else np.broadcast_to(np.int64(value), count)


def _column(column: Any) -> Column:
    return Texts.from_column(column) if pa.types.is_string(column.type) else column.to_numpy()
