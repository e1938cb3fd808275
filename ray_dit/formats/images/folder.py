"""A folder with one sub-folder per class: each image is an object, its key the path below the folder.

What is written lies in ``train/``; the object that stands for a shard lists its images with their hashes.
"""

# pyarrow has no type information; what it returns is unknown to the checker
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from ray_dit.errors import NotFound, UserError
from ray_dit.formats.clutter import SUFFIXES, images_among, suffix_of, why_no_image
from ray_dit.formats.dataset_card import Card, Kind
from ray_dit.formats.deterministic import damaged, parquet_bytes
from ray_dit.formats.image_format import (
    Entry,
    ImageShard,
    InputFormat,
    Listing,
    OutputFormat,
    Piece,
    Place,
    Rows,
    Source,
    WholeDataset,
    dtype_name,
    version_of,
)
from ray_dit.formats.json_text import parse_json
from ray_dit.formats.label_file import LabelFile
from ray_dit.formats.labels import WORDNET_ID
from ray_dit.formats.rows import texts_of

ROOT = "train/"
"""Where images are written."""
TABLE = f"{ROOT}metadata.parquet"
"""What `datasets` reads labels, numbers and settings from."""
LONGEST_NAME = 100
"""Bytes of a class folder's name, at most, where classes are not called by their WordNet ids."""
READERS = 8
"""Images that are read at once."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]+')
_OPENED = """from datasets import load_dataset

dataset = load_dataset(".", split="train")"""


class ImageFolder(InputFormat, OutputFormat):
    """Image files in folders named as their classes, or anywhere where a file gives their classes."""

    suffix = ".files.json"

    def fits(self, source: Source, first: Sequence[Entry]) -> bool:
        """Where one of the first names ends as an image's."""
        return any(suffix_of(entry.key) in SUFFIXES for entry in first if why_no_image(entry.key) is None)

    def pieces(self, source: Source) -> Sequence[Piece]:
        """The whole: a listing of a thousand objects takes one request."""
        path = _local_folder(source)
        if path is not None and not path.exists():
            raise NotFound(
                f"the image folder {source.uri} does not exist: give a folder with one sub-folder per class"
            )
        if path is not None and not path.is_dir():
            raise UserError(f"{source.uri} is a file where a folder with one sub-folder per class is wanted")
        return [Piece()]

    def list_piece(self, source: Source, piece: Piece) -> Rows:
        """Lists the objects once; memory holds their names, sizes and versions alone."""
        left_out = Counter[str]()
        sizes, versions = array("q"), array("q")

        def names() -> Iterator[str]:
            for key, entry in images_among(((e.key, e) for e in source.list(piece.object)), left_out):
                sizes.append(entry.size)
                versions.append(version_of(source, entry))
                yield key

        return Rows(
            names=texts_of(names(), source.uri),
            sizes=np.array(sizes, np.int64),
            versions=np.array(versions, np.int64),
            left_out=left_out,
        )

    def list_images(
        self, source: Source, labels: LabelFile | None = None, rows: Iterable[Rows] | None = None
    ) -> Listing:
        """As every format; UserError for a class without images too."""
        listing = super().list_images(source, labels, rows)
        if labels is None:
            _refuse_empty_classes(source, listing.classes)
        return listing

    def read_image(self, source: Source, key: str, place: Place) -> bytes:
        """The file."""
        return source.get(str(place.get("object", key)))

    def write(self, shard: ImageShard, name: str) -> dict[str, bytes]:
        """The list of the shard's files, then these."""
        files: dict[str, bytes] = {}
        listed: list[dict[str, Any]] = []
        settings = shard.columns
        for row, (path, data) in enumerate(zip(_paths(shard), shard.images, strict=True)):
            files[ROOT + path] = data
            told = {"key": ROOT + path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            own = {"id": int(shard.ids[row]), "label": int(shard.labels[row])}
            listed.append(told | own | {name: column[row] for name, column in settings.items()})
        head = {
            "classes": shard.classes,
            "wordnet_ids": shard.wordnet_ids,
            "encoding": shard.encoding,
            "prefix": shard.prefix,
            "settings": list(settings),
        }
        text = json.dumps(head | {"files": listed}, sort_keys=True, ensure_ascii=False)
        return {name + self.suffix: f"{text}\n".encode(), **files}

    def read(self, source: Source, keys: Sequence[str]) -> ImageShard:
        """The images that the list names; UserError for one that has another hash."""
        where = f"{source.uri}/{keys[0]}"
        try:
            document: Any = parse_json(source.get(keys[0]))
            files = cast("list[dict[str, Any]]", document["files"])
            with ThreadPoolExecutor(READERS) as pool:
                images = list(pool.map(partial(_checked, source), files))
            return ImageShard(
                images,
                np.array([file["label"] for file in files], np.int64),
                np.array([file["id"] for file in files], np.int64),
                tuple(map(str, document["classes"])),
                tuple(map(str, document["wordnet_ids"])),
                settings={name: np.array([file[name] for file in files]) for name in document["settings"]},
                encoding=document["encoding"],
                prefix=document["prefix"],
            )
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise damaged(where, error) from error

    def whole(self, dataset: WholeDataset) -> Mapping[str, Callable[[], bytes]]:
        """The table of all images."""
        return {TABLE: lambda: _table(list(dataset.rows()))}

    def card(self, shard: ImageShard) -> Card:
        """`datasets` goes by the table."""
        label: dict[str, Kind] = {"label": shard.classes} if shard.classes else {}
        settings = {name: dtype_name(column) for name, column in shard.settings.items()}
        columns: dict[str, Kind] = {"image": "image", **label, "id": "int64", **settings}
        return Card(columns=columns, data=f"{ROOT}**", opened=_OPENED)


def class_folders(classes: Sequence[str], wordnet_ids: Sequence[str]) -> list[str]:
    """The folder of each class: its WordNet id, else its name where that can name a folder on every system.

    Else its number and what is left of the name.
    """
    if wordnet_ids and all(map(WORDNET_ID.fullmatch, wordnet_ids)) and len({*wordnet_ids}) == len(classes):
        return [*wordnet_ids]
    clean = [_UNSAFE.sub("-", name).strip(" .").lstrip("_.") for name in classes]
    often = Counter(name.casefold() for name in clean)
    folders = [
        name
        if name == classes[number] and often[name.casefold()] == 1 and 0 < len(name.encode()) <= LONGEST_NAME
        else f"{number:05d}-{name[: LONGEST_NAME // 4]}".rstrip(" .-")
        for number, name in enumerate(clean)
    ]
    alone = len({folder.casefold() for folder in folders}) == len(folders)
    return folders if alone else [f"{number:05d}" for number in range(len(folders))]


def _paths(shard: ImageShard) -> list[str]:
    """Where the images lie below ``ROOT``."""
    folders = [f"{name}/" for name in class_folders(shard.classes, shard.wordnet_ids)] or [""]
    return [
        f"{folders[label]}{shard.prefix}{name}" for label, name in zip(shard.labels, shard.names, strict=True)
    ]


def _checked(source: Source, file: Mapping[str, Any]) -> bytes:
    """An image that a list names."""
    key = str(file["key"])
    if not key.startswith(ROOT):
        raise ValueError(f"{key} lies outside of {ROOT}")
    data = source.get(key)
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise damaged(f"{source.uri}/{key}", ValueError("it does not hold what was written there"))
    return data


def _table(shards: Sequence[ImageShard]) -> bytes:
    """The table of all images, which `datasets` looks up beside them."""
    first = shards[0]
    names = [path for shard in shards for path in _paths(shard)]
    ids = np.concatenate([shard.ids for shard in shards])
    label, features = {}, {"file_name": {"dtype": "string", "_type": "Value"}}
    if first.classes:
        label = {"label": np.concatenate([shard.labels for shard in shards])}
        features["label"] = {"names": list(first.classes), "_type": "ClassLabel"}  # type: ignore[dict-item]
    features["id"] = {"dtype": "int64", "_type": "Value"}
    settings = {
        name: np.concatenate([shard.settings[name] for shard in shards]).tolist() for name in first.settings
    }
    table = pa.table({"file_name": pa.array(names, pa.string()), **label, "id": ids, **settings})
    for name in settings:
        features[name] = {"dtype": dtype_name(first.settings[name]), "_type": "Value"}
    return parquet_bytes(table, {"info": {"features": features}}, name="huggingface")


def _refuse_empty_classes(source: Source, classes: Iterable[str]) -> None:
    """UserError for a class without images; only a local folder can hold an empty one."""
    path = _local_folder(source)
    folders = {entry.name for entry in path.iterdir() if entry.is_dir()} if path is not None else set[str]()
    with_images = {*classes}
    empty = sorted(
        name
        for name in folders
        if unicodedata.normalize("NFC", name) not in with_images and why_no_image(f"{name}/x.png") is None
    )
    if empty:
        raise UserError(
            f"the class folder {empty[0]!r} in {source.uri} holds no images: add some "
            f"({', '.join(SUFFIXES)}) or remove the folder"
        )


def _local_folder(source: Source) -> Path | None:
    inside = source.local_path("_")
    return inside.parent if inside is not None else None
