"""NumPy archives as guided-diffusion's evaluator reads them: ``arr_0`` the images, ``arr_1`` their labels.

Shards are such archives, with the images' numbers and the names of classes beside; once all are there, one
archive of all images is streamed from them. Nothing is compressed, so that sizes are known beforehand and
arrays are copied as they lie. Nothing is unpickled.
"""

import io
import json
import math
import mmap
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ray_dit.core.media import decode, encode
from ray_dit.core.to_rgb import UnreadableImage
from ray_dit.errors import UserError
from ray_dit.formats.dataset_card import Card
from ray_dit.formats.deterministic import damaged
from ray_dit.formats.image_format import ImageShard, OutputFormat, Source, WholeDataset, Written
from ray_dit.formats.json_text import parse_json

IMAGES, LABELS, IDS, INFO = "arr_0", "arr_1", "ids", "info.json"
KEPT_BYTES = 1 << 30
"""A larger archive is made in a file."""
_OPENED = """import glob
import numpy

arrays = numpy.load(sorted(glob.glob("samples_*.npz"))[-1])
images = arrays["arr_0"]  # uint8 [N, H, W, 3]"""


class Npz(OutputFormat):
    """Plain pixels: each shard an archive, and one of all images at the end."""

    suffix = ".npz"
    encodings = ("bmp",)

    def write(self, shard: ImageShard, name: str) -> dict[str, bytes]:
        """One archive."""
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as archive:
            pixels = np.stack([decode(image) for image in shard.images])
            arrays = {IMAGES: pixels, **_labels(shard), IDS: shard.ids, **shard.settings}
            for member, array in arrays.items():
                _write(archive, member, array.shape, array.dtype, [_bytes(array)])
            info = {"classes": shard.classes, "wordnet_ids": shard.wordnet_ids, "settings": [*shard.settings]}
            archive.writestr(_entry(INFO), json.dumps(info, ensure_ascii=False))
        return {name + self.suffix: sink.getvalue()}

    def read(self, source: Source, keys: Sequence[str]) -> ImageShard:
        """The arrays of the one archive; the images as BMP files, which are their pixels with a head."""
        with _saying(f"{source.uri}/{keys[0]}"), zipfile.ZipFile(io.BytesIO(source.get(keys[0]))) as archive:
            info: Any = parse_json(_member(archive, INFO))
            pixels = _array(archive, IMAGES)
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
                raise ValueError(f"its images are {pixels.dtype} {list(pixels.shape)}")
            ids = _array(archive, IDS)
            labelled = bool(info["classes"])
            labels = _array(archive, LABELS) if labelled else np.zeros(len(pixels), np.int64)
            settings = {str(name): _array(archive, str(name)) for name in info["settings"]}
            columns = (ids, labels, *settings.values())
            numbers = {ids.dtype, labels.dtype}
            if any(len(column) != len(pixels) for column in columns) or numbers != {np.dtype(np.int64)}:
                raise ValueError("its arrays do not fit together")
            return ImageShard(
                [encode(image, "bmp") for image in pixels],
                labels,
                ids,
                tuple(map(str, info["classes"])),
                tuple(map(str, info["wordnet_ids"])),
                settings=settings,
                encoding="bmp",
            )

    def whole(self, dataset: WholeDataset) -> Mapping[str, Callable[[], bytes]]:
        """The archive of all images."""
        return {name_of(dataset.num_images, dataset.image_size): lambda: _whole(dataset)}

    def card(self, shard: ImageShard) -> Card:
        """`datasets` does not load it."""
        return Card(columns={}, data="data/{prefix}train-*.npz", opened=_OPENED)


def name_of(num_images: int, size: int) -> str:
    """What the archive of all images is called, as guided-diffusion calls it."""
    return f"samples_{num_images}x{size}x{size}x3.npz"


def _labels(shard: ImageShard) -> dict[str, NDArray[Any]]:
    return {LABELS: shard.labels} if shard.classes else {}


def _whole(dataset: WholeDataset) -> bytes:
    """The archive of all images, mapped into memory from a file that has no name, unless it is small."""
    count, size = dataset.num_images, dataset.image_size
    rows = list(dataset.rows())
    columns: dict[str, NDArray[Any]] = {}
    if rows[0].classes:
        columns[LABELS] = np.concatenate([shard.labels for shard in rows])
    columns[IDS] = np.concatenate([shard.ids for shard in rows])
    columns |= {name: np.concatenate([shard.settings[name] for shard in rows]) for name in rows[0].settings}
    needed = count * size * size * 3
    try:
        with tempfile.SpooledTemporaryFile(max_size=KEPT_BYTES) as file:
            with zipfile.ZipFile(cast("IO[bytes]", file), "w") as archive:
                pixels = (_pixels(dataset.get(shard), shard) for shard in dataset.shards())
                _write(archive, IMAGES, (count, size, size, 3), np.dtype(np.uint8), pixels)
                for name, column in columns.items():
                    _write(archive, name, column.shape, column.dtype, [_bytes(column)])
            file.seek(0)
            if needed <= KEPT_BYTES:
                return file.read()
            file.flush()
            return cast("bytes", mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(
            f"the archive of all images takes {needed / 1e9:.1f} GB in {tempfile.gettempdir()} while it is "
            f"made, and that failed ({error.strerror}): set TMPDIR to a folder with so much space"
        ) from error


def _pixels(data: bytes, shard: Written) -> memoryview:
    """The bytes of a shard's images."""
    with _saying(shard.key), zipfile.ZipFile(io.BytesIO(data)) as archive:
        return _bytes(_array(archive, IMAGES))


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    parts: Iterable[memoryview],
) -> None:
    """An array in parts, as ``numpy.savez`` writes it but for the time."""
    head = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as member:
        npy.write_array_header_1_0(member, head)
        for part in parts:
            member.write(part)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # whose time is a constant
    entry.create_system = 3  # not that of the system it is made on
    return entry


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's bytes, which are as many as lie there: it is not compressed."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ValueError(f"{name} is compressed")
    return archive.read(entry)


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """A member as an array over its bytes; ValueError where its head promises others."""
    data = _member(archive, f"{name}.npy")
    file = io.BytesIO(data)
    if npy.read_magic(file) != (1, 0):
        raise ValueError(f"{name} is of another version of the format")
    shape, is_fortran, dtype = npy.read_array_header_1_0(file)
    start = file.tell()
    if is_fortran or dtype.kind not in "uifU" or dtype.itemsize == 0:
        raise ValueError(f"{name} is an array of {dtype}")
    if math.prod(shape) * dtype.itemsize != len(data) - start or min(shape, default=0) < 0:
        raise ValueError(f"{name} has other bytes than its head says")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@contextmanager
def _saying(where: str) -> Generator[None]:
    """Turns what is raised on damaged bytes into a sentence."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, OverflowError, RuntimeError, NotImplementedError,
            zipfile.BadZipFile, UnreadableImage) as error:  # fmt: skip
        raise damaged(where, error) from error
