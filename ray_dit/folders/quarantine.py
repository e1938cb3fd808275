"""The images that a stage has set aside, as it lists them: Parquet, a row per image in the plan's order.

Earlier versions wrote a file of two columns, key and reason; folders that have one keep it. Knows no stage.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from ray_dit.errors import UserError
from ray_dit.formats.deterministic import damaged, parquet_bytes, read_parquet
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import generation_tag
from ray_dit.results import FLEETING, UNREADABLE, BadImage

SHOWN = 3
"""Bad images that the message about too many of them names."""
CODES = {
    UNREADABLE: "damaged, cut off, empty, or in no format that is read",
    "too-large": "more pixels than Pillow's safety limit",
    "too-thin": "so long and thin that hardly any of it would be seen",
    "dark-grey": "a grey of 16 bits that is very dark or has fewer bits: --images.white-level says which",
    "unclear-level": "a grey of 32 bits or floats of one value, whose level nobody can tell",
    "not-finite": "floats that are no finite numbers",
    "gone": "its object was not there when it was read",
    "changed": "its object was another one than was planned",
    "crash": "decoding it ended the process that tried it, or took more memory than that was given",
}
"""Why an image is set aside, by code."""
COLUMNS = {
    "key": pa.string(),
    "label": pa.int64(),
    "class": pa.string(),
    "object": pa.string(),
    "bytes": pa.int64(),
    "sha256": pa.string(),
    "code": pa.string(),
    "reason": pa.string(),
    "format": pa.string(),
    "mode": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
}
_CLASS = "class"
"""The column that is no field: it follows from the label."""


def check_bad(
    bad: int, total: int, max_bad: float, where: str, first: Sequence[BadImage], *, so_far: bool = False
) -> None:
    """UserError when more images are unreadable than allowed; ``so_far``: there may be more."""
    if bad > max_bad * total:
        example = f", the first is {first[0].key!r} ({first[0].reason})" if first else ""
        others = [f"{entry.key!r} ({entry.reason})" for entry in first[1:SHOWN]]
        example += f", then {', '.join(others)}" if others else ""
        fleeting = any(entry.is_fleeting for entry in first)
        ways = "bring those back that are gone or changed" if fleeting else "repair or remove them"
        raise UserError(
            f"{'at least ' if so_far else ''}{bad} of {total} images in {where} cannot be read, more than "
            f"images.max_bad = {max_bad} allows{example}: {ways}, or raise --images.max-bad; what is "
            "finished stays"
        )


def quarantine_key(generation: int = 0) -> str:
    """Where a generation lists the images it has set aside."""
    return f"quarantine{generation_tag(generation)}.parquet"


def earlier_key(generation: int = 0) -> str:
    """Where earlier versions did."""
    return f"quarantine{generation_tag(generation)}.tsv"


def is_of_earlier(job: Job) -> bool:
    """Whether an earlier version has listed the bad images of this job: its list stays."""
    key = earlier_key(job.generation)
    return any(job.store.head(place) is not None for place in (job.plain.place(key), key))


def put_quarantine(job: Job, bad: Iterable[BadImage], classes: Sequence[str]) -> None:
    """Lists the images that were set aside, in the folder of the job that did."""
    if is_of_earlier(job):
        job.put_plain(earlier_key(job.generation), earlier_bytes(bad))
    else:
        job.put_plain(quarantine_key(job.generation), quarantine_bytes(bad, classes))


def quarantine_bytes(bad: Iterable[BadImage], classes: Sequence[str]) -> bytes:
    """Parquet of these images; ``classes`` are the names that labels stand for."""
    bad = list(bad)
    columns: dict[str, list[Any]] = {
        name: [getattr(entry, name) for entry in bad] for name in COLUMNS if name != _CLASS
    }
    columns[_CLASS] = [None if label is None else classes[label] for label in columns["label"]]
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in COLUMNS.items()})
    return parquet_bytes(table, {"codes": CODES}, name="quarantine")


def read_quarantine(data: bytes, where: str = "the list of bad images") -> list[BadImage]:
    """What ``quarantine_bytes`` was given; UserError, naming ``where`` it lies, for anything else."""
    needed = {name: COLUMNS[name] for name in ("key", "code", "reason")}
    table, _ = read_parquet(data, needed, where=where, name="quarantine")
    if table.schema.names != list(COLUMNS) or table.schema.types != list(COLUMNS.values()):
        raise damaged(where, ValueError("its columns are others"))
    return [BadImage(**row) for row in table.drop_columns([_CLASS]).to_pylist()]


def earlier_bytes(bad: Iterable[BadImage]) -> bytes:
    """The list as earlier versions wrote it, for folders that have one."""
    lines = (f"{entry.key}\t{entry.code if entry.code in FLEETING else entry.reason}\n" for entry in bad)
    return ("key\treason\n" + "".join(lines)).encode()


def read_earlier(data: bytes) -> list[BadImage]:
    """What ``earlier_bytes`` was given."""
    lines = [line.partition("\t") for line in data.decode().splitlines()[1:]]
    return [BadImage.as_before(key, reason) for key, _, reason in lines]
