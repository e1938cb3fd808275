"""Small inputs that stand for much: refused, or read in the memory that their kind may take."""

import io
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.fuzz.readers import LISTING, READERS, dataset_job, torch_files
from tests.fuzz.sandbox import Sandbox, Verdict
from tests.support.layouts import parquet_bytes, zip_bytes


def read(name: str, data: bytes, *, seconds: float = 20.0) -> Verdict:
    """Within the bounds of the reader, else an AssertionError."""
    reader = READERS[name]
    good = reader.good()
    with Sandbox(reader.read, reader.allowed, seconds) as sandbox:
        sandbox.read(good[0])  # what libraries take once, at their first use, is not the bomb's
        verdict = sandbox.read(data)
    assert verdict.kind in ("read", "refused"), verdict
    assert verdict.megabytes < reader.megabytes, f"{verdict.megabytes:.0f} MB for {len(data)} bytes"
    assert len(verdict.text) < 1000, "an error as long as the bomb"
    return verdict


def png(width: int, height: int) -> bytes:
    """Black, one bit per pixel: 9 bytes for a thousand pixels at most."""
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + -(-width // 8))) for _ in range(height)) + rows.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (40, 2_000_000), (2_000_000, 40)])
def test_images_that_would_fill_the_memory_are_refused(width: int, height: int) -> None:
    data = png(width, height)
    verdict = read("image 256", data)
    assert verdict.kind == "refused"
    assert verdict.megabytes < 50


@pytest.mark.parametrize(("width", "height"), [(1_000_000, 1), (1, 1_000_000), (10, 300_000)])
def test_long_strips_are_read_in_little_memory(width: int, height: int) -> None:
    verdict = read("image 256", png(width, height))
    assert verdict.kind == "read"
    assert verdict.megabytes < 50


def test_the_largest_image_that_is_read_takes_what_it_may() -> None:
    assert read("image", png(9400, 9400)).kind == "read"


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_parquet_that_stands_for_gigabytes_is_refused(compression: str) -> None:
    rows = 4_000_000
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 8, np.float16)), 8)
    constant = {"key": pa.array(["a"] * rows), "label": pa.array(np.zeros(rows, np.int64))}
    table = pa.table({**constant, "heldout": pa.array(np.zeros(rows, np.bool_)), "moments": zeros})
    with io.BytesIO() as sink:
        pq.write_table(
            table.replace_schema_metadata({"facts": '{"moments_shape": [2, 2, 2]}'}),
            sink,
            compression=compression,
            use_dictionary=compression == "none",
        )
        data = sink.getvalue()
    verdict = read("latents", data)
    assert verdict.kind == "refused"
    assert verdict.megabytes < 50


ALIASES = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
)
MERGES = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
)


@pytest.mark.parametrize(
    "text",
    [
        f"{ALIASES}\nencode: {{vae: x}}",
        f"{ALIASES}\nencode: {{mirror: *a11}}",
        f"{MERGES}\nencode: *a11",
        "encode: &a {vae: *a}",
        "encode: {vae: " + "9" * 100_000 + "}",
        "encode: {vae: 2001-13-45, shard_size: !!int ''}",
        "encode: {? [a, b] : c}",
        "encode: !!python/object/apply:os.system [id]",
        "x" * 1_000_000,
        "- " * 50_000,
        "{" * 50_000,
        "encode: " + "[" * 500 + "]" * 500,
    ],
)
def test_recipes_that_grow_are_refused(text: str) -> None:
    assert read("recipe", text.encode()).kind == "refused"


def test_a_tensor_that_repeats_one_number_is_refused() -> None:
    good = torch.load(io.BytesIO(torch_files()[0]))
    for name in ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "pos_embed"):
        weight = good["ema"][name]
        with io.BytesIO() as sink:
            shape = [side * (1 << 16) if place < 2 else side for place, side in enumerate(weight.shape)]
            torch.save({"ema": good["ema"] | {name: torch.ones(1).expand(shape)}}, sink)
            verdict = read("torch file", sink.getvalue())
        assert verdict.kind == "refused", name


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_lying_lengths_in_safetensors_are_refused(length: int) -> None:
    for name in ("safetensors", "checkpoint"):
        data = READERS[name].good()[0]
        assert read(name, length.to_bytes(8, "little") + data[8:]).kind == "refused"


@pytest.mark.parametrize("key", ["", "../outside", "/etc/passwd", "a//b", "."])
@pytest.mark.parametrize("name", ["manifest.json", LISTING, "_markers/00000.json"])
def test_keys_that_leave_the_folder_are_refused(name: str, key: str) -> None:
    data = dataset_job()[name]
    for there in (LISTING, "data/00000.bin"):
        data = data.replace(f'"{there}"'.encode(), f'"{key}"'.encode())
    assert data != dataset_job()[name]
    assert read(f"job {name}", data).kind == "refused"


def repeated(count: int) -> bytes:
    """A ZIP archive of ``count`` entries of one range of bytes."""
    data = bytearray(zip_bytes({"cat/0.png": b"x" * 1000}))
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, count * (end - start), start, 0)
    return bytes(data[:start] + data[start:end] * count + tail)


def followed(size: int) -> bytes:
    """A ZIP archive whose entry has short compressed data, and so many bytes after their end."""
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = bytearray(
        zip_bytes({"cat/0.png": deflate.compress(b"x") + deflate.flush() + bytes(size)}, zipfile.ZIP_STORED)
    )
    for at in (data.index(b"PK\3\4") + 8, data.rindex(b"PK\1\2") + 10):
        data[at : at + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    return bytes(data)


def test_archives_that_stand_for_much_are_refused_or_read_in_bounds() -> None:
    zeros = zip_bytes({"cat/0.png": bytes(60 << 20)})
    assert read("archive zip", zeros).kind == "read"
    assert read("archive zip", repeated(10_000)).kind == "refused", "one key for all"
    assert read("archive zip", followed(24 << 20), seconds=1.0).kind == "read", (
        "what follows its data is copied over and over"
    )
    header = tarfile.TarInfo("cat/0.png")
    for size in (1 << 40, (1 << 63) - 1):
        header.size = size
        assert read("archive tar", header.tobuf(tarfile.GNU_FORMAT) + bytes(5000)).kind == "refused"
    chain = tarfile.TarInfo("././@LongLink")
    chain.type, chain.size = tarfile.GNUTYPE_LONGNAME, 512
    assert read("archive tar", (chain.tobuf() + bytes(512)) * 5000).kind == "refused", (
        "name of a name of a name"
    )


def test_parquet_images_whose_names_unpack_to_gigabytes_are_refused() -> None:
    names = ["x" * (1 << 20) + str(number) for number in range(200)]
    data = parquet_bytes({f"cat/{name}": b"x" for name in names}, group=200, compression="zstd")
    assert len(data) < 2 << 20
    verdict = read("archive parquet", data)
    assert verdict.kind == "refused"
    assert verdict.megabytes < 50
