"""The image formats by name: one line per format, and the only place that knows the modules they are in."""

from ray_dit.errors import UserError
from ray_dit.formats.image_format import InputFormat, OutputFormat
from ray_dit.formats.images.folder import ImageFolder
from ray_dit.formats.images.parquet import Parquet

FORMATS: dict[str, InputFormat | OutputFormat] = {
    "folder": ImageFolder(),
    "parquet": Parquet(),
}


def input_format(name: str) -> InputFormat:
    """The format images are read in; UserError for a name that is none."""
    found = FORMATS.get(name)
    if not isinstance(found, InputFormat):
        raise UserError(f"images can't be read in the format {name!r}: take one of {_names(InputFormat)}")
    return found


def output_format(name: str) -> OutputFormat:
    """The format a dataset is written in; UserError for a name that is none."""
    found = FORMATS.get(name)
    if not isinstance(found, OutputFormat):
        raise UserError(
            f"a dataset can't be written in the format {name!r}: take one of {_names(OutputFormat)}"
        )
    return found


def written_in(key: str) -> OutputFormat:
    """The format an object of a dataset was written in, known by what its key ends in.

    UserError for any other.
    """
    for found in FORMATS.values():
        if isinstance(found, OutputFormat) and key.endswith(found.suffix):
            return found
    raise UserError(f"{key} is in no format datasets are written in: those are {_names(OutputFormat)}")


def _names(kind: type[InputFormat] | type[OutputFormat]) -> str:
    return ", ".join(name for name, entry in FORMATS.items() if isinstance(entry, kind))
