"""Tars, ZIP archives, WebDatasets and Parquet files as people and enemies make them."""

import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_dit.core.to_rgb import UnreadableImage
from ray_dit.errors import UserError
from ray_dit.folders.listing import ListPiece, in_threads, rows_of
from ray_dit.formats.image_format import Listing
from ray_dit.formats.ranges import LARGE, RangeFile
from ray_dit.formats.registry import format_of, input_format
from tests.support.layouts import Files, parquet_bytes, samples, tar_bytes, zip_bytes
from tests.support.memory import Memory


@dataclass(frozen=True)
class Counting(Memory):
    """Says where each request began and how many bytes it brought."""

    requests: list[tuple[int, int]] = field(default_factory=list)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = self.objects[key][start : start + length]
        self.requests.append((start, len(data)))
        return data


def listed(name: str, objects: Files) -> Listing:
    return input_format(name).list_images(Memory(objects))


def read_all(name: str, objects: Files) -> dict[str, bytes]:
    """Every image by its key."""
    source, listing = Memory(objects), listed(name, objects)
    places = [{at: column[row] for at, column in listing.places.items()} for row in range(len(listing.keys))]
    found = zip(listing.keys, places, strict=True)
    return {key: input_format(name).read_image(source, key, place) for key, place in found}


CATS = {"cat/0.png": b"zero", "cat/1.jpg": b"one", "dog/ü 2.webp": b"two" * 1000}


# Tars


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_read(kind: int) -> None:
    long = {f"cat/{'long' * 30}.png": b"long"} if kind != tarfile.USTAR_FORMAT else {}
    assert read_all("tar", {"x.tar": tar_bytes(CATS | long, format=kind)}) == CATS | long


def test_entries_that_lead_out_of_a_tar_are_left_out() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name in ("../out.png", "/etc/x.png", "cat/../../y.png", "cat/good.png", "cat//z.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"data"))
        for name, kind in {
            "cat/s.png": tarfile.SYMTYPE,
            "cat/h.png": tarfile.LNKTYPE,
            "cat/f.png": tarfile.FIFOTYPE,
        }.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    listing = listed("tar", {"x.tar": sink.getvalue()})
    assert listing.keys == ("cat/good.png",)
    assert listing.left_out == {"unsafe paths": 4, "links and devices": 3}


def test_a_name_that_is_no_utf8_is_said() -> None:
    name = b"cat/caf\xe9.png".decode("utf-8", "surrogateescape")
    with pytest.raises(UserError, match=r"'cat/caf\\udce9.png' in memory is no UTF-8: rename it"):
        listed("tar", {"x.tar": tar_bytes({name: b"x"}, errors="surrogateescape")})


def test_a_damaged_tar_is_named() -> None:
    good = tar_bytes({"cat/0.png": bytes(3000), "cat/1.png": bytes(3000)})
    for data in (good[:2000], b"", b"<html>", good[:512] + b"\xff" * 4000):
        with pytest.raises(UserError, match="memory/x.tar is no tar that can be read to its end"):
            listed("tar", {"x.tar": data})
    with pytest.raises(UserError, match="x.tar.gz in memory is a compressed tar"):
        format_of(Memory({"x.tar.gz": b"x"}))


def test_the_class_is_the_inner_tars_name() -> None:
    inner = {
        "n01440764.tar": tar_bytes({"n01440764_1.JPEG": b"fish"}),
        "n01443537.tar": tar_bytes({"a/b.JPEG": b"gold"}),
    }
    wanted = {"n01440764/n01440764_1.JPEG": b"fish", "n01443537/a/b.JPEG": b"gold"}
    assert read_all("tars", {"ILSVRC2012_img_train.tar": tar_bytes(inner)}) == wanted
    assert read_all("tars", inner) == wanted, "a folder of them"
    assert listed("tars", inner).classes == ("n01440764", "n01443537")
    assert format_of(Memory({"ILSVRC2012_img_train.tar": tar_bytes(inner)})) == "tars"
    assert format_of(Memory({"a.tar": inner["n01440764.tar"], "b.tar": inner["n01440764.tar"]})) == "tars"


def test_a_far_tar_is_read_in_few_requests_and_a_large_entry_is_leapt_over() -> None:
    many = {f"cat/{number}.png": bytes(20_000) for number in range(500)}
    source = Counting({"x.tar": tar_bytes(many)})
    assert len(input_format("tar").list_images(source).keys) == 500
    assert len(source.requests) < 20
    assert max(length for _, length in source.requests) <= LARGE
    large = {"cat/0.png": bytes(30 << 20), "cat/1.png": bytes(30 << 20), "dog/2.png": b"x"}
    source = Counting({"x.tar": tar_bytes(large)})
    input_format("tar").list_images(source)
    assert sum(length for _, length in source.requests) < 1 << 20


@pytest.mark.parametrize(
    ("name", "objects", "told"),
    [
        (
            "tar",
            {"x.tar": tar_bytes(CATS)},
            "passes over a tar once, as a tar has no index: reading up to 10.2 kB",
        ),
        (
            "tar",
            {"x.tar": tar_bytes(CATS), "y.tar": tar_bytes({"cow/1.png": b"x"})},
            "passes over 2 tars once",
        ),
        ("webdataset", {"x.tar": tar_bytes(samples(CATS))}, "passes over a tar once"),
        ("zip", {"x.zip": zip_bytes(CATS)}, None),
    ],
)
def test_what_a_pass_over_far_tars_reads_is_told_before(name: str, objects: Files, told: str | None) -> None:
    heard: list[tuple[str, int]] = []
    source = Counting(objects)
    task = ListPiece("memory", name, None)
    tell = lambda what: heard.append((what, len(source.requests)))  # noqa: E731
    list(rows_of(input_format(name), source, task, in_threads, tell))
    assert len(heard) == (told is not None)
    for what, requests in heard:
        assert told in what
        assert requests == 0


def test_inner_tars_are_found_without_reading_them() -> None:
    inner = {f"n{number:08d}.tar": tar_bytes({"x.png": bytes(3 << 20)}) for number in range(12)}
    source = Counting({"outer.tar": tar_bytes(inner)})
    assert len(input_format("tars").pieces(source)) == 12
    assert sum(length for _, length in source.requests) < 1 << 20


def test_a_range_file_is_a_file() -> None:
    data = bytes(range(256)) * 300
    file = RangeFile(Memory({"x": b"before" + data + b"after"}), "x", 6, len(data))
    assert (file.read(10), file.tell()) == (data[:10], 10)
    assert (file.seek(-5, io.SEEK_END), file.read(100)) == (len(data) - 5, data[-5:])
    assert file.read(1) == b""
    file.seek(70_000)
    assert file.read(3) == data[70_000:70_003]
    file.seek(len(data) + 10)
    assert file.read(1) == b""
    with pytest.raises(ValueError, match="before the beginning"):
        file.seek(-1)
    huge = RangeFile(Memory({"x": b""}), "x", 0, 1 << 50)
    with pytest.raises(ValueError, match="bytes at once"):
        huge.read()


# ZIP


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_archives_are_read_stored_and_deflated(method: int) -> None:
    assert read_all("zip", {"x.zip": zip_bytes(CATS, method)}) == CATS


def test_zip_archives_of_all_makers_are_read() -> None:
    def streamed(files: Files) -> bytes:
        class Pipe(io.BytesIO):
            def seekable(self) -> bool:
                return False

            def seek(self, *_: int) -> int:
                raise OSError

        sink = Pipe()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:  # sizes follow the bytes
            for name, data in files.items():
                archive.writestr(name, data)
        return sink.getvalue()

    assert read_all("zip", {"x.zip": streamed(CATS)}) == CATS
    commented = io.BytesIO(zip_bytes(CATS))
    with zipfile.ZipFile(commented, "a") as archive:
        archive.comment = b"PK\5\6 not the end" * 100
    assert read_all("zip", {"x.zip": b"#!/bin/sh\n" + zip_bytes(CATS)}) == CATS, "self-extracting"
    windows = zip_bytes({"cat/0.png": b"zero"}).replace(b"cat/0.png", b"cat\\0.png")
    assert read_all("zip", {"x.zip": windows}) == {"cat/0.png": b"zero"}


def test_large_zip_archives_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    data = zip_bytes(CATS, zipfile.ZIP_STORED)
    assert b"PK\6\6" in data
    assert read_all("zip", {"x.zip": data}) == CATS


def test_hostile_entries_of_a_zip_are_left_out() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in ("../x.png", "/abs.png", "cat/good.png"):
            archive.writestr(name, b"data")
        link = zipfile.ZipInfo("cat/link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr(zipfile.ZipInfo("cat/bz.png"), b"data" * 99, zipfile.ZIP_BZIP2)
    listing = listed("zip", {"x.zip": sink.getvalue()})
    assert listing.keys == ("cat/good.png",)
    assert listing.left_out == {
        "unsafe paths": 2,
        "links and encrypted files": 1,
        "files compressed otherwise than by deflate": 1,
    }


def changed(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """An archive with other bytes in its last record of a kind."""
    at = data.rindex(signature) + offset
    return data[:at] + value + data[at + len(value) :]


def test_lying_zip_directories_are_refused() -> None:
    good = zip_bytes(CATS)
    lies = {
        "count": changed(good, b"PK\5\6", 10, struct.pack("<H", 60_000)),
        "directory": changed(good, b"PK\5\6", 12, struct.pack("<I", 1 << 31)),
        "offset": changed(good, b"PK\1\2", 42, struct.pack("<I", 1 << 30)),
        "size": changed(good, b"PK\1\2", 20, struct.pack("<I", 1 << 30)),
        "no end": good[:-30],
        "empty": b"",
    }
    for name, data in lies.items():
        with pytest.raises(UserError, match="memory/x.zip is no ZIP archive that can be read"):
            pytest.fail(f"{name}: {listed('zip', {'x.zip': data}).keys}")


def test_a_damaged_entry_of_a_zip_is_a_bad_image_and_no_more() -> None:
    data = bytearray(zip_bytes({"cat/0.png": b"zero" * 100, "cat/1.png": b"one"}, zipfile.ZIP_STORED))
    data[data.index(b"zerozero") + 3] ^= 1
    listing = listed("zip", {"x.zip": bytes(data)})
    places = [{at: column[row] for at, column in listing.places.items()} for row in range(2)]
    with pytest.raises(UnreadableImage, match="damaged in its ZIP archive: its checksum is wrong"):
        input_format("zip").read_image(Memory({"x.zip": bytes(data)}), "", places[0])
    assert input_format("zip").read_image(Memory({"x.zip": bytes(data)}), "", places[1]) == b"one"


def test_a_compressed_entry_that_is_cut_off_is_a_bad_image() -> None:
    content = random.Random(1).randbytes(50_000)
    data = zip_bytes({"cat/0.png": content})
    place = {at: column[0] for at, column in listed("zip", {"x.zip": data}).places.items()}
    assert input_format("zip").read_image(Memory({"x.zip": data}), "", place) == content
    place["packed"] -= 1
    with pytest.raises(UnreadableImage, match="its data have no end"):
        input_format("zip").read_image(Memory({"x.zip": data}), "", place)


# WebDataset


def test_webdatasets_tell_classes_in_cls_or_json() -> None:
    def label(value: object) -> bytes:
        return json.dumps(value).encode()

    shard = {
        "a/0.jpg": b"0", "a/0.json": label({"label": 3, "class_name": "cat"}),
        "1.png": b"1", "1.cls": b" 7\n", "1.json": label({"label": "unused"}), "1.txt": b"a caption",
        "2.json": label({"cls": 7.0}), "2.webp": b"2", "2.seg.png": b"mask",
    }  # fmt: skip
    objects = {"s.tar": tar_bytes(shard)}
    assert format_of(Memory(objects)) == "webdataset"
    assert read_all("webdataset", objects) == {"cat/a/0.jpg": b"0", "7/1.png": b"1", "7/2.webp": b"2"}
    assert listed("webdataset", objects).classes == ("7", "cat")
    assert listed("webdataset", objects).left_out == {".txt": 1, "other images of a sample": 1}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1.png": b"x", "1.json": b"{}"}, "1 of 1 images in memory have no class, first '1.png'"),
        ({"1.png": b"x", "1.json": b"{"}, "1.json in memory/s.tar tells no class"),
        ({"1.png": b"x", "1.cls": b"\xff"}, "1.cls in memory/s.tar tells no class"),
        ({"1.png": b"x", "1.cls": bytes(5000)}, "1.cls in memory/s.tar has 5,000 bytes: it tells no class"),
    ],
)
def test_samples_without_a_class_are_named(files: Files, said: str) -> None:
    with pytest.raises(UserError, match=said):
        listed("webdataset", {"s.tar": tar_bytes(files)})


def test_a_far_shard_is_read_in_few_requests_with_what_tells_classes() -> None:
    source = Counting(
        {"s.tar": tar_bytes(samples({f"cat/{number}.png": bytes(9000) for number in range(300)}))}
    )
    assert len(input_format("webdataset").list_images(source).keys) == 300
    assert len(source.requests) < 15


def test_samples_whose_files_lie_apart_belong_together() -> None:
    files = samples(CATS)
    apart = {name: files[name] for name in sorted(files, key=lambda name: name.rpartition(".")[2])}
    assert read_all("webdataset", {"s.tar": tar_bytes(apart)}) == CATS


# Parquet


def table_bytes(**columns: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_parquet_as_datasets_writes_it_is_read(compression: str) -> None:
    assert read_all("parquet", {"x.parquet": parquet_bytes(CATS, group=2, compression=compression)}) == CATS


def test_declared_classes_keep_their_names_numbers_and_absent_ones() -> None:
    data = parquet_bytes({f"{name}/{name}.png": b"x" for name in ("b", "a", "cc")})
    listing = listed("parquet", {"x.parquet": data})
    assert listing.classes == ("a", "b", "cc")
    table = pq.read_table(io.BytesIO(data))
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["crane", "x", "crane"]},
    }
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pq.write_table(named.slice(0, 2).set_column(1, "label", pa.array([2, 0])), sink)
    listing = listed("parquet", {"x.parquet": sink.getvalue()})
    assert (listing.classes, sorted(listing.labels.tolist())) == (("crane", "x", "crane"), [0, 2])


def test_parquet_without_names_is_keyed_by_rows_and_classes_may_be_text() -> None:
    images = pa.array([b"0", b"1", b"2"], pa.binary())
    data = table_bytes(png=images, label=pa.array(["dog", "cat", "dog"]))
    assert read_all("parquet", {"x.parquet": data}) == {
        "x/000000000": b"0", "x/000000001": b"1", "x/000000002": b"2",
    }  # fmt: skip
    assert listed("parquet", {"x.parquet": data}).classes == ("cat", "dog")
    two = listed("parquet", {"a.parquet": data, "b.parquet": data})
    assert two.keys == tuple(f"{file}/00000000{row}" for file in "ab" for row in range(3))
    same_names = [{"bytes": b"x", "path": "image.png"}] * 2
    data = table_bytes(image=pa.array(same_names), label=pa.array([0, 0]))
    assert listed("parquet", {"x.parquet": data}).keys == ("x/000000000", "x/000000001")


def test_a_large_set_is_keyed_so_that_it_is_read_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_dit.formats.images.parquet.BYTES_KEPT", 100)
    files = {f"{name}/{number}.png": b"x" for name in ("a", "b10", "c2") for number in range(1)}
    assert listed("parquet", {"x.parquet": parquet_bytes(files)}).keys == tuple(files)
    turned = dict(reversed(files.items()))
    assert listed("parquet", {"a/x.parquet": parquet_bytes(turned)}).keys == tuple(
        f"a/x/00000000{row}" for row in range(3)
    )


def empty_cells() -> bytes:
    cells = pa.array([{"bytes": None, "path": "/etc/passwd"}, {"bytes": b"x", "path": "x.png"}])
    return table_bytes(image=cells, label=pa.array([0, 0]))


def test_a_cell_without_bytes_is_a_bad_image() -> None:
    with pytest.raises(UnreadableImage, match="holds no bytes"):
        read_all("parquet", {"x.parquet": empty_cells()})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: table_bytes(text=pa.array(["a"])),
            "memory/x.parquet has no column of encoded images .*: text",
        ),
        (lambda: table_bytes(image=pa.array([b"x"])), "1 of 1 images in memory have no class"),
        (lambda: b"PAR1", "memory/x.parquet is no Parquet file that can be read"),
        (lambda: parquet_bytes(CATS)[:-50], "memory/x.parquet is no Parquet file that can be read"),
        (lambda: table_bytes(image=pa.array([b"x"]), label=pa.array([None], pa.int64())), "have no class"),
    ],
)
def test_parquet_that_is_none_of_images_says_so(make: Callable[[], bytes], said: str) -> None:
    with pytest.raises(UserError, match=said):
        listed("parquet", {"x.parquet": make()})


def test_a_row_group_is_read_once_for_the_images_in_it(tmp_path: Path) -> None:
    files = {f"cat/{number:02d}.png": bytes([number]) * 50 for number in range(12)}
    opened: list[str] = []

    class Opened(Memory):
        def open_file(self, key: str) -> io.BytesIO:
            opened.append(key)
            return io.BytesIO(self.objects[key])

    source = Opened({"x.parquet": parquet_bytes(files, group=4)}, uri=str(tmp_path))
    listing = input_format("parquet").list_images(source)
    opened.clear()
    for row, key in enumerate(listing.keys):
        place = {at: column[row] for at, column in listing.places.items()}
        assert input_format("parquet").read_image(source, key, place) == files[key]
    assert len(opened) == 3
