"""What every entry of the registry of image formats must do, on objects in memory: no store is needed."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from ray_dit.core.media import decode, png
from ray_dit.errors import NotFound, UserError
from ray_dit.formats.image_format import ImageShard, InputFormat, OutputFormat, natural_key
from ray_dit.formats.registry import FORMATS, input_format, output_format, written_in

INPUTS = [name for name, entry in FORMATS.items() if isinstance(entry, InputFormat)]
OUTPUTS = [name for name, entry in FORMATS.items() if isinstance(entry, OutputFormat)]
CLASSES = ("2", "10", "maße, größen")
"""In natural order; one has more in it than ASCII letters."""


@dataclass(frozen=True)
class Info:
    key: str
    size: int
    etag: str | None = None


@dataclass(frozen=True)
class Memory:
    """Objects in a dict."""

    objects: Mapping[str, bytes]
    uri: str = "memory"

    def list(self, prefix: str = "") -> Iterator[Info]:
        return (Info(key, len(data)) for key, data in sorted(self.objects.items()) if key.startswith(prefix))

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def open_file(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def local_path(self, key: str) -> Path | None:
        return None


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)


def shard(count: int, classes: Sequence[str] = CLASSES, first: int = 0) -> ImageShard:
    images = [png(image) for image in pixels(count)]
    labels = np.arange(count, dtype=np.int64) % max(1, len(classes))
    return ImageShard(images, labels, np.arange(first, first + count, dtype=np.int64), tuple(classes))


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("classes", [CLASSES, ()], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("count", [7, 1])
def test_a_shard_comes_back_as_it_was_written(name: str, classes: tuple[str, ...], count: int) -> None:
    entry, written = output_format(name), shard(count, classes, first=40)
    objects = entry.write(written, "data/train-00001-of-00003")
    read = entry.read(Memory(objects), list(objects))
    assert [decode(data).tobytes() for data in read.images] == [image.tobytes() for image in pixels(count)]
    assert read.labels.tolist() == written.labels.tolist()
    assert read.labels.dtype == np.int64
    assert read.ids.tolist() == written.ids.tolist()
    assert read.ids.dtype == np.int64
    assert (read.classes, read.names) == (written.classes, written.names)


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_shard_gives_the_same_objects_and_its_keys_tell_the_format(name: str) -> None:
    entry = output_format(name)
    objects = entry.write(shard(5), "data/train-00001-of-00003")
    assert entry.write(shard(5), "data/train-00001-of-00003") == objects
    assert entry.write(shard(4), "data/train-00001-of-00003") != objects
    assert objects
    assert all(written_in(key) is entry for key in objects)


def folder_objects(written: ImageShard) -> dict[str, bytes]:
    """Images as people keep them: one folder per class."""
    rows = zip(written.labels, written.names, written.images, strict=True)
    return {f"{written.classes[label]}/{name}": data for label, name, data in rows}


EXAMPLES = {"folder": folder_objects}
"""How a small set looks in the formats that can only be read; the others write their own."""


@pytest.mark.parametrize("name", INPUTS)
def test_a_small_set_is_listed_and_decoded(name: str) -> None:
    entry, written = input_format(name), shard(7)
    if isinstance(entry, OutputFormat):
        source = Memory(entry.write(written, "data/train-00000-of-00001"))
    else:
        source = Memory(EXAMPLES[name](written))
    listing = entry.list_images(source)
    assert listing.classes == CLASSES
    assert listing.keys == tuple(sorted(set(listing.keys)))
    assert len(listing.keys) == 7
    assert listing.labels.dtype == np.int64
    assert all(len(column) == 7 for column in listing.places.values())
    places = [{at: column[row] for at, column in listing.places.items()} for row in range(7)]
    found = {
        decode(entry.read_image(source, key, place)).tobytes(): listing.classes[label]
        for key, label, place in zip(listing.keys, listing.labels, places, strict=True)
    }
    rows = zip(pixels(7), written.labels, strict=True)
    assert found == {image.tobytes(): CLASSES[label] for image, label in rows}


@pytest.mark.parametrize("name", INPUTS)
def test_a_place_without_images_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="memory"):
        input_format(name).list_images(Memory({"notes.txt": b"no image"}))


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="can't be read in the format 'parquets': take one of .*folder"):
        input_format("parquets")
    with pytest.raises(UserError, match="can't be written in the format 'folders': take one of .*parquet"):
        output_format("folders")
    with pytest.raises(UserError, match="data/1.txt is in no format .* parquet"):
        written_in("data/1.txt")


def test_numbers_in_names_sort_as_numbers() -> None:
    assert sorted(["10", "9b", "b", "9", "a10", "a9"], key=natural_key) == ["9", "9b", "10", "a9", "a10", "b"]
