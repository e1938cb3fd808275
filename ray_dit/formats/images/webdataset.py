"""WebDataset: tars in which files of one stem are a sample, an image and its class in ``.cls`` or ``.json``.

A place is (object, start, length), as in a plain tar. What is written begins with a file that names the
classes, which readers of WebDataset pass over: ``.cls`` holds a number. Knows no other layout.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from ray_dit.core.media import SUFFIX_OF, Encoding
from ray_dit.errors import UserError
from ray_dit.formats.dataset_card import Card, Kind
from ray_dit.formats.deterministic import damaged
from ray_dit.formats.image_format import (
    Entry,
    ImageShard,
    InputFormat,
    OutputFormat,
    WholeDataset,
    dtype_name,
    object_pieces,
)
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.label_file import class_in, class_name
from ray_dit.formats.merging import Layout
from ray_dit.formats.ranges import read_place
from ray_dit.formats.rows import Piece, Place, Rows, Source
from ray_dit.formats.tar_members import (
    LARGEST_IMAGE,
    Member,
    images_in,
    kind_of_tar,
    pass_over_tars,
    rows_of,
    split_sample,
    tar_piece,
)

LONGEST_LABEL = {"cls": 4 << 10, "json": 4 << 20}
"""Bytes of the files that tell a class, by suffix."""
OTHER = "other images of a sample"
CLASSES = "__classes__"
"""The file that names the classes: readers pass over names of this kind, and over those without a dot."""
INDEX = "data/index.json"
"""Where the shards are listed with their numbers of samples, as wids reads it."""
_ENCODINGS: dict[str, Encoding] = {suffix[1:]: cast("Encoding", name) for name, suffix in SUFFIX_OF.items()}
_ASKED = {**LONGEST_LABEL, CLASSES: 4 << 20}
_OPENED = """import glob
import webdataset

dataset = webdataset.WebDataset(sorted(glob.glob("data/*.tar")), shardshuffle=False).decode("pil")"""


class WebDataset(InputFormat, OutputFormat):
    """Shards of samples; several are read as one."""

    suffix = ".tar"
    layout = Layout(in_archive=True, names_repeat=True)

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """Looks at the first entries of the first tar."""
        return kind_of_tar(source, first) == "webdataset"

    def pieces(self, source: Source) -> Sequence[Piece]:
        """One per shard."""
        return object_pieces(source, ".tar")

    def pass_over(self, source: Source, pieces: Sequence[Piece]) -> str:
        """All of what lies far away is read."""
        return pass_over_tars(source, pieces)

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Passes over the headers of a shard, and reads what tells classes."""
        left_out = Counter[str]()
        where = f"{source.uri}/{piece.object}"
        classes: dict[str, str] = {}
        names: list[str] = []
        others: list[Member] = []
        for member in tar_piece(source, piece, _ASKED):
            stem, suffix = split_sample(member.name)
            if member.name == CLASSES and not member.special:
                names = _class_names(member, where)
            elif suffix not in LONGEST_LABEL or member.special:
                others.append(member)
            elif suffix == "cls" or stem not in classes:  # what .cls says counts before what .json says
                classes[stem] = _class(member, suffix, where) or classes.get(stem, "")
        images = [m for m in images_in(others, left_out) if _is_whole_image(m, left_out)]
        told = [classes.get(split_sample(member.name)[0], "") for member in images]
        rows = rows_of(piece, images, left_out)
        return replace(rows, classes=[_named(label, names, where) for label in told] if names else told)

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The entry's bytes."""
        return read_place(source, place)

    def write(self, shard: ImageShard, name: str) -> dict[str, bytes]:
        """One tar, its files in the order of the samples."""
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for file, data in _files(shard):
                entry = tarfile.TarInfo(file)  # whose time, owner and mode are constants
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return {name + self.suffix: sink.getvalue()}

    def read(self, source: Source, keys: Sequence[str]) -> ImageShard:
        """The samples of the one tar."""
        key = keys[0]
        with source.open_file(key) as file:
            size = file.seek(0, io.SEEK_END)
        asked = _ASKED | dict.fromkeys(_ENCODINGS, LARGEST_IMAGE)
        members = list(tar_piece(source, Piece(key, length=size, size=size), asked))
        try:
            return _shard(members, f"{source.uri}/{key}")
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(f"{source.uri}/{key}", error) from error

    def whole(self, dataset: WholeDataset) -> Mapping[str, Callable[[], bytes]]:
        """The index."""

        def index() -> bytes:
            shards = [
                {"url": shard.key.rpartition("/")[2], "nsamples": shard.rows, "filesize": shard.bytes}
                for shard in dataset.shards()
            ]
            head = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "train"}
            return (json.dumps(head | {"shardlist": shards}, indent=1) + "\n").encode()

        return {INDEX: index}

    def card(self, shard: ImageShard) -> Card:
        """`datasets` calls the columns as the files end."""
        label: dict[str, Kind] = {"cls": shard.classes} if shard.classes else {}
        json_column = {name: dtype_name(column) for name, column in shard.settings.items()}
        settings: dict[str, Kind] = {"json": json_column} if json_column else {}
        image = {SUFFIX_OF[shard.encoding][1:]: "image", "__key__": "string", "__url__": "string"}
        return Card(columns={**label, **settings, **image}, data="data/{prefix}train-*.tar", opened=_OPENED)


def _files(shard: ImageShard) -> Iterator[tuple[str, bytes]]:
    """The files of a tar in their order, in a sample that of their suffixes."""
    if shard.classes:
        yield CLASSES, json.dumps(shard.classes, ensure_ascii=False).encode()
    names = list(shard.columns)
    varying: list[tuple[Any, ...]] = [*zip(*shard.columns.values(), strict=True)]
    for row, (number, data) in enumerate(zip(shard.ids, shard.images, strict=True)):
        stem = f"{number:09d}"
        if shard.classes:
            yield f"{stem}.cls", str(shard.labels[row]).encode()
        if names:
            yield f"{stem}.json", json.dumps(dict(zip(names, varying[row], strict=True))).encode()
        yield f"{stem}{SUFFIX_OF[shard.encoding]}", data


def _shard(members: Sequence[Member], where: str) -> ImageShard:
    """The inverse of ``_files``; ValueError, KeyError or TypeError for other files."""
    found: dict[str, dict[str, bytes]] = {}
    classes: list[str] = []
    for member in members:
        stem, suffix = split_sample(member.name)
        if member.name == CLASSES:
            classes = _class_names(member, where)
        elif member.special or suffix in found.setdefault(stem, {}):
            raise ValueError(f"{member.name} is no file of a sample, or there twice")
        else:
            found[stem][suffix] = member.content
    samples = list(found.values())
    encodings = {suffix for sample in samples for suffix in sample} & _ENCODINGS.keys()
    if len(encodings) != 1:
        raise ValueError("its samples have no images, or images of several kinds")
    image = encodings.pop()
    rows = [parse_json(sample["json"]) for sample in samples if "json" in sample]
    labels = [int(sample["cls"]) for sample in samples] if classes else [0] * len(samples)
    if not all(0 <= label < max(1, len(classes)) for label in labels):
        raise ValueError("a label is no class")
    return ImageShard(
        [sample[image] for sample in samples],
        np.array(labels, np.int64),
        np.array([int(stem) for stem in found], np.int64),
        tuple(classes),
        settings={name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())},
        encoding=_ENCODINGS[image],
    )


def _class_names(member: Member, where: str) -> list[str]:
    """The names of the classes by their numbers; UserError where the file holds none."""
    try:
        names: Any = parse_json(member.content)
    except ValueError as error:
        raise UserError(f"{member.name} in {where} names no classes: {error}") from error
    if not isinstance(names, list) or not all(isinstance(one, str) for one in cast("list[Any]", names)):
        raise UserError(f"{member.name} in {where} names no classes: it is to be a list of names")
    return cast("list[str]", names)


def _named(label: str, names: Sequence[str], where: str) -> str:
    """The class of a number; what is no number is a name already."""
    if not (label.isascii() and label.isdigit()):
        return label
    if not int(label[:9]) < len(names) or len(label) > 9:
        raise UserError(f"{where} has the label {label[:20]}, and names {len(names)} classes")
    return names[int(label)]


def _is_whole_image(member: Member, left_out: Counter[str]) -> bool:
    """Whether a sample's file is its image and not another one beside it, such as ``x.mask.png``."""
    if "." not in split_sample(member.name)[1]:
        return True
    left_out[OTHER] += 1
    return False


def _class(member: Member, suffix: str, where: str) -> str | None:
    """The class that a file of a sample tells; None where a JSON tells none."""
    try:
        if suffix == "cls":
            return class_name(member.content.decode())
        document = parse_json(member.content)
        if isinstance(document, dict):
            return class_in(cast("dict[str, Any]", document))
        return class_name(document)
    except ValueError as error:
        raise UserError(f"{member.name} in {where} tells no class: {error}") from error
