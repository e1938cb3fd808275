"""What every entry of the registry of image formats must do, on objects in memory: no store is needed."""

import hashlib
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from ray_dit.core.media import Encoding, decode, encode
from ray_dit.errors import NotFound, UserError
from ray_dit.formats.image_format import (
    ImageShard,
    InputFormat,
    Listing,
    OutputFormat,
    Place,
    WholeDataset,
    Written,
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


def shard(
    count: int, classes: Sequence[str] = CLASSES, first: int = 0, encoding: Encoding = "png", **fields: Any
) -> ImageShard:
    images = [encode(image, encoding) for image in pixels(count)]
    labels = np.arange(count, dtype=np.int64) % max(1, len(classes))
    ids = np.arange(first, first + count, dtype=np.int64)
    return ImageShard(images, labels, ids, tuple(classes), encoding=encoding, **fields)


def shard_for(entry: OutputFormat, count: int, *arguments: Any, **fields: Any) -> ImageShard:
    """In the encoding that is usual in the format."""
    return shard(count, *arguments, encoding=entry.encodings[0], **fields)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("classes", [CLASSES, ()], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("count", [7, 1])
def test_a_shard_comes_back_as_it_was_written(name: str, classes: tuple[str, ...], count: int) -> None:
    entry = output_format(name)
    written = shard_for(entry, count, classes, first=40)
    objects = entry.write(written, "data/train-00001-of-00003")
    read = entry.read(Memory(objects), list(objects))
    assert [decode(data).tobytes() for data in read.images] == [image.tobytes() for image in pixels(count)]
    assert read.labels.tolist() == written.labels.tolist()
    assert read.labels.dtype == np.int64
    assert read.ids.tolist() == written.ids.tolist()
    assert read.ids.dtype == np.int64
    assert (read.classes, read.names, read.settings) == (written.classes, written.names, {})


@pytest.mark.parametrize("name", OUTPUTS)
def test_settings_that_vary_come_back_beside_the_images(name: str) -> None:
    entry = output_format(name)
    settings = {
        "seed": np.array([2**62, 0, 7]),
        "guidance_scale": np.array([1.0, 1.5, 4.0]),
        "sampler": np.array(["ddim", "unipc", "ddim"]),
    }
    objects = entry.write(shard_for(entry, 3, settings=settings), "data/train-00001-of-00003")
    read = entry.read(Memory(objects), list(objects))
    assert read.columns == {name: column.tolist() for name, column in settings.items()}
    assert [read.settings[column].dtype.kind for column in settings] == ["i", "f", "U"]


@pytest.mark.parametrize(
    ("name", "encoding"), [(name, each) for name in OUTPUTS for each in output_format(name).encodings]
)
def test_images_keep_their_encoding(name: str, encoding: Encoding) -> None:
    entry, written = output_format(name), shard(3, encoding=encoding)
    objects = entry.write(written, "data/train-00001-of-00003")
    read = entry.read(Memory(objects), list(objects))
    assert (read.encoding, read.names) == (encoding, written.names)
    assert read.images == written.images


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_same_shard_gives_the_same_objects_and_the_first_key_tells_the_format(name: str) -> None:
    entry = output_format(name)
    objects = entry.write(shard_for(entry, 5), "data/train-00001-of-00003")
    assert entry.write(shard_for(entry, 5), "data/train-00001-of-00003") == objects
    assert entry.write(shard_for(entry, 4), "data/train-00001-of-00003") != objects
    first, *others = objects
    assert first == f"data/train-00001-of-00003{entry.suffix}"
    assert written_in(first) is entry
    if others:
        listed = json.loads(objects[first])["files"]
        told = {file["key"]: (file["bytes"], file["sha256"]) for file in listed}
        assert told == {key: (len(objects[key]), hashlib.sha256(objects[key]).hexdigest()) for key in others}


@pytest.mark.parametrize("name", sorted({*OUTPUTS} - {"parquet"}))
def test_a_damaged_shard_is_refused_or_read_by_name(name: str) -> None:
    """A byte of the first object in turn: whatever comes of it, no other error does.

    Not of Parquet: pyarrow ends the process for some footers, so tests/fuzz tries that in one of its own.
    """
    entry = output_format(name)
    objects = entry.write(shard_for(entry, 2), "data/train-00001-of-00003")
    key = next(iter(objects))
    refused: list[str] = []
    for place in range(0, len(objects[key]), 7):
        data = bytearray(objects[key])
        data[place] ^= 0x41
        try:
            entry.read(Memory({**objects, key: bytes(data)}), list(objects))
        except (UserError, NotFound) as error:
            refused.append(str(error))
    assert refused
    assert all("memory" in message or "train/" in message for message in refused)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_of_a_shard_that_is_not_the_listed_one_is_refused(name: str) -> None:
    entry = output_format(name)
    objects = entry.write(shard_for(entry, 3), "data/train-00001-of-00003")
    _, *others = objects
    for key in others:
        changed = {**objects, key: next(objects[other] for other in others if other != key)}
        with pytest.raises(UserError, match=f"{key} is damaged .*does not hold what was written there"):
            entry.read(Memory(changed), list(objects))
        with pytest.raises(NotFound, match=key):
            entry.read(Memory({k: data for k, data in objects.items() if k != key}), list(objects))


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_a_format_writes_at_the_end_follows_from_its_shards(name: str) -> None:
    entry = output_format(name)
    shards = [shard_for(entry, 4), shard_for(entry, 3, first=4)]
    written = [entry.write(each, f"data/{at}") for at, each in enumerate(shards)]
    stored = {key: data for objects in written for key, data in objects.items()}
    firsts = [next(iter(objects)) for objects in written]
    whole = WholeDataset(
        num_images=7,
        image_size=6,
        shards=lambda: (Written(key, 4 - at, len(stored[key]), "") for at, key in enumerate(firsts)),
        rows=lambda: (replace(each, images=()) for each in shards),
        get=lambda shard: stored[shard.key],
    )
    made = {key: make() for key, make in entry.whole(whole).items()}
    assert made == {key: make() for key, make in entry.whole(whole).items()}
    assert not made.keys() & stored.keys()


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
        objects = entry.write(written, "data/train-00000-of-00001")
        if len(objects) > 1:  # an image folder is the folder of the images
            objects = {
                k.removeprefix("train/"): data for k, data in objects.items() if k.startswith("train/")
            }
        listing = entry.list_images(Memory(objects))
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
    with pytest.raises(UserError, match="can't be written in the format 'tar': take one of .*webdataset"):
        output_format("tar")
    with pytest.raises(UserError, match="data/1.txt is in no format .* parquet"):
        written_in("data/1.txt")


def test_numbers_in_names_sort_as_numbers() -> None:
    assert sorted(["10", "9b", "b", "9", "a10", "a9"], key=natural_key) == ["9", "9b", "10", "a9", "a10", "b"]
