"""The same images in every layout: ``{"cat/1.png": bytes}`` as the objects of a source."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

Files = Mapping[str, bytes]


def by_class(files: Files) -> dict[str, dict[str, bytes]]:
    """The files of each class by their names below it."""
    classes: dict[str, dict[str, bytes]] = {}
    for key, data in files.items():
        folder, _, name = key.partition("/")
        classes.setdefault(folder, {})[name] = data
    return classes


def tar_bytes(files: Files, **options: object) -> bytes:
    """A tar of files."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return sink.getvalue()


def zip_bytes(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP archive of files."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def parquet_bytes(files: Files, *, group: int = 3, compression: str = "snappy") -> bytes:
    """As ``datasets`` writes images: paths are names alone, the class is a ClassLabel."""
    classes = sorted(by_class(files), key=lambda name: (len(name), name))
    names = [key.partition("/")[2] for key in files]
    table = pa.table(
        {
            "image": [
                {"bytes": data, "path": name} for name, data in zip(names, files.values(), strict=True)
            ],
            "label": pa.array([classes.index(key.partition("/")[0]) for key in files], pa.int64()),
        }
    )
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata), sink, row_group_size=group, compression=compression
    )
    return sink.getvalue()


def samples(files: Files) -> dict[str, bytes]:
    """The files of a WebDataset: of each image itself and its class."""
    found: dict[str, bytes] = {}
    for key, data in files.items():
        folder, _, name = key.partition("/")
        found[name] = data
        found[name.rpartition(".")[0] + ".cls"] = folder.encode()
    return found


def halves(files: Files) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files in two parts."""
    items = list(files.items())
    return dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])


LAYOUTS: dict[str, Callable[[Files], dict[str, bytes]]] = {
    "folder": dict,
    "tar": lambda files: {"all.tar": tar_bytes({f"./top/{name}": data for name, data in files.items()})},
    "tars": lambda files: {
        "outer.tar": tar_bytes({f"{name}.tar": tar_bytes(found) for name, found in by_class(files).items()})
    },
    "zip": lambda files: {"all.zip": zip_bytes(files)},
    "webdataset": lambda files: {
        f"shard-{number}.tar": tar_bytes(samples(half)) for number, half in enumerate(halves(files))
    },
    "parquet": lambda files: {"data/train-00000-of-00001.parquet": parquet_bytes(files)},
}
