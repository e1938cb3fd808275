"""What every entry of the registry of image formats must do, on objects in memory: no store is needed."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from ray_dit.core.media import decode, png
from ray_dit.errors import UserError
from ray_dit.formats.image_format import (
    ImageShard,
    InputFormat,
    Listing,
    OutputFormat,
    Place,
    input_sha256,
    natural_key,
)
from ray_dit.formats.merging import merge
from ray_dit.formats.registry import FORMATS, format_of, input_format, output_format, written_in
from tests.support.layouts import LAYOUTS
from tests.support.memory import Memory

INPUTS = [name for name, entry in FORMATS.items() if isinstance(entry, InputFormat)]
OUTPUTS = [name for name, entry in FORMATS.items() if isinstance(entry, OutputFormat)]
CLASSES = ("2", "10", "maße, größen")
"""In natural order; one has more in it than ASCII letters."""


@dataclass(frozen=True)
class Counting(Memory):
    """Says how many bytes each request brought."""

    requests: list[int] = field(default_factory=list)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = super().get(key)[start : start + length]
        self.requests.append(len(data))
        return data

    def get(self, key: str) -> bytes:
        data = super().get(key)
        self.requests.append(len(data))
        return data


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


def files_of(written: ImageShard) -> dict[str, bytes]:
    """Images as people keep them: one folder per class."""
    rows = zip(written.labels, written.names, written.images, strict=True)
    return {f"{written.classes[label]}/{name}": data for label, name, data in rows}


@pytest.mark.parametrize("name", INPUTS)
def test_a_small_set_is_seen_listed_and_decoded(name: str) -> None:
    entry, written = input_format(name), shard(7)
    source = Memory(LAYOUTS[name](files_of(written)))
    assert format_of(source) == name
    listing = entry.list_images(source)
    assert listing.classes == CLASSES
    assert listing.keys == tuple(sorted(files_of(written))), "the keys of a folder"
    assert listing.labels.dtype == np.int64
    assert all(len(column) == 7 for column in listing.places.values())
    assert (len(listing.sizes), len(listing.versions)) == (7, 7)
    if listing.places:
        objects = listing.places["object"]
        assert listing.sizes.tolist() == [len(source.objects[key]) for key in objects]
    found = {
        decode(entry.read_image(source, key, place)).tobytes(): listing.classes[label]
        for key, label, place in zip(listing.keys, listing.labels, places_of(listing), strict=True)
    }
    rows = zip(pixels(7), written.labels, strict=True)
    assert found == {image.tobytes(): CLASSES[label] for image, label in rows}


def places_of(listing: Listing) -> list[Place]:
    return [{at: column[row] for at, column in listing.places.items()} for row in range(len(listing.keys))]


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_written_can_be_read_as_images(name: str) -> None:
    entry, written = output_format(name), shard(7)
    if isinstance(entry, InputFormat):
        listing = entry.list_images(Memory(entry.write(written, "data/train-00000-of-00001")))
        assert (listing.classes, listing.keys) == (CLASSES, tuple(sorted(files_of(written))))


@pytest.mark.parametrize("name", INPUTS)
def test_pieces_are_listed_by_themselves_in_any_order(name: str) -> None:
    entry, source = input_format(name), Memory(LAYOUTS[name](files_of(shard(7))))
    pieces = pickle.loads(pickle.dumps(list(entry.pieces(source))))
    rows = [pickle.loads(pickle.dumps(entry.list_piece(source, piece))) for piece in reversed(pieces)]
    again, whole = merge(source.uri, rows, entry.layout), entry.list_images(source)
    assert (again.keys, again.classes) == (whole.keys, whole.classes)
    assert again.labels.tolist() == whole.labels.tolist()
    assert input_sha256(again) == input_sha256(whole)


@pytest.mark.parametrize("name", sorted({*INPUTS} - {"parquet"}))
def test_an_image_takes_one_request(name: str) -> None:
    entry, source = input_format(name), Counting(LAYOUTS[name](files_of(shard(7))))
    listing = entry.list_images(source)
    source.requests.clear()
    for key, place in zip(listing.keys, places_of(listing), strict=True):
        entry.read_image(source, key, place)
    assert len(source.requests) == 7
    assert sum(source.requests) < 3 * sum(map(len, files_of(shard(7)).values()))


@pytest.mark.parametrize("name", ["folder", "tar", "zip"])
def test_clutter_is_left_out_and_counted(name: str) -> None:
    files = files_of(shard(7))
    clutter = {"2/.hidden.png": b"x", "__MACOSX/2/._1.png": b"x", "2/notes.txt": b"x", "_old/1.png": b"x"}
    listing = input_format(name).list_images(Memory(LAYOUTS[name](files | clutter)))
    assert listing.keys == tuple(sorted(files))
    assert "left out 4: 2 hidden or set-aside names, " in listing.note


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
