"""The image formats by name: one line per format, and the only place that knows the modules they are in."""

from itertools import islice

from ray_dit.errors import UserError
from ray_dit.formats.clutter import HIDDEN, SYSTEM, why_no_image
from ray_dit.formats.image_format import InputFormat, OutputFormat, Source
from ray_dit.formats.images.folder import ImageFolder
from ray_dit.formats.images.npz import Npz
from ray_dit.formats.images.parquet import Parquet
from ray_dit.formats.images.tar import Tar, TarOfTars
from ray_dit.formats.images.webdataset import WebDataset
from ray_dit.formats.images.zip import Zip
from ray_dit.formats.tar_members import COMPRESSED

FORMATS: dict[str, InputFormat | OutputFormat] = {
    "folder": ImageFolder(),
    "parquet": Parquet(),
    "zip": Zip(),
    "tars": TarOfTars(),
    "webdataset": WebDataset(),
    "tar": Tar(),
    "npz": Npz(),
}
LOOK = 1000
"""Objects of a source that tell its format: a page of a listing."""


def format_of(source: Source) -> str:
    """Name of the format that a source is in, by its first objects; of several, the first in the registry.

    A folder where nothing tells: whoever lists it says what is missing. UserError for a compressed tar.
    """
    first = [e for e in islice(source.list(), LOOK) if why_no_image(e.key) not in (HIDDEN, SYSTEM)]
    for name, entry in FORMATS.items():
        if isinstance(entry, InputFormat) and entry.fits(source, first):
            return name
    packed = [entry.key for entry in first if entry.key.lower().endswith(COMPRESSED)]
    if packed:
        raise UserError(
            f"{packed[0]} in {source.uri} is a compressed tar, of which no image can be read alone: "
            "uncompress it to a .tar"
        )
    return "folder"


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
