"""The list of bad images: what is read back, what the codes are, and the lists of earlier versions."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_dit.config import ImagesConfig
from ray_dit.core.media import decode_image
from ray_dit.core.to_rgb import UnreadableImage
from ray_dit.errors import UserError
from ray_dit.folders.latent_plans import bad_images, made_again
from ray_dit.folders.quarantine import (
    CODES,
    COLUMNS,
    earlier_bytes,
    put_quarantine,
    quarantine_bytes,
    read_earlier,
    read_quarantine,
)
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.results import RESULTS, BadImage, LatentShardFacts
from ray_dit.storage.open import open_store
from tests.support.results import latent_facts, latents_result

CLASSES = ("left", "right")
FULL = BadImage(
    "right/ü 2.tif", "it is dark", "dark-grey", 1, "a.tar", 900, "0f" * 32, "TIFF", "I;16", 30, 40
)
BARE = BadImage("left/1.png", "its object is gone", "gone")


def test_what_was_set_aside_is_read_back() -> None:
    data = quarantine_bytes([FULL, BARE], CLASSES)
    assert read_quarantine(data) == [FULL, BARE]
    assert data == quarantine_bytes(iter([FULL, BARE]), CLASSES)
    table = pq.read_table(io.BytesIO(data))
    assert table["class"].to_pylist() == ["right", None]
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == COLUMNS
    assert read_quarantine(quarantine_bytes([], CLASSES)) == []


@pytest.mark.parametrize("data", [b"", b"key\treason\nleft/1.png\tcut off\n", b"PAR1" + bytes(40) + b"PAR1"])
def test_what_is_no_such_list_is_told(data: bytes) -> None:
    with pytest.raises(UserError, match="there/quarantine.parquet is damaged"):
        read_quarantine(data, "there/quarantine.parquet")


def encoded(image: Image.Image, kind: str = "TIFF") -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "code", "seen"),
    [
        (b"", "unreadable", None),
        (encoded(Image.new("RGB", (40, 40)), "PNG")[:60], "unreadable", ("PNG", "RGB", 40, 40)),
        (encoded(Image.new("1", (10000, 10000)), "PNG"), "too-large", ("PNG", "1", 10000, 10000)),
        (encoded(Image.new("1", (1_000_000, 20)), "PNG"), "too-thin", ("PNG", "1", 1_000_000, 20)),
        (
            encoded(Image.fromarray(np.full((4, 5), 700, np.uint16))),
            "dark-grey",
            ("TIFF", "I;16", 5, 4),
        ),
        (encoded(Image.new("F", (5, 4), -3)), "unclear-level", ("TIFF", "F", 5, 4)),
        (encoded(Image.new("F", (5, 4), float("nan"))), "not-finite", ("TIFF", "F", 5, 4)),
    ],
)
def test_what_cannot_be_decoded_has_a_code(data: bytes, code: str, seen: Any) -> None:
    with pytest.raises(UnreadableImage) as raised:
        decode_image(data, 8)
    known = raised.value.seen
    assert raised.value.code == code
    assert code in CODES
    assert (known and (known.format, known.mode, known.width, known.height)) == seen


def test_the_codes_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/images.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line for line in lines if line.split("`")[1] in CODES] == [
        f"| `{code}` | {meaning} |" for code, meaning in CODES.items()
    ]


def earlier_folder(folder: Path) -> Job:
    """A finished job as earlier versions left it."""
    job = Job.open(open_store(str(folder)), "encode", {"config": {}})
    bad = (("left/1.png", "cut off"), ("right/2.png", "gone"))
    facts = latent_facts(0, 2).model_copy(update={"bad": bad, "seen": 4})
    job.put("00000", "latents/00000.parquet", b"latents", facts)
    job.put_plain("quarantine.tsv", b"key\treason\nleft/1.png\tcut off\nright/2.png\tgone\n")
    job.finish(latents_result(rows=2, train_rows=2, bad=2, mean=(), std=()))
    return job


def test_the_list_of_an_earlier_version_is_verified_repaired_and_kept(tmp_path: Path) -> None:
    job, listed = earlier_folder(tmp_path), tmp_path / "quarantine.tsv"
    assert [problem.what for problem in verify(job.store, results=RESULTS)] == []
    whole, manifest = listed.read_bytes(), (tmp_path / "manifest.json").read_bytes()
    bad = bad_images(marker.facts for marker in job.markers(LatentShardFacts))
    assert [(entry.key, entry.code, entry.is_fleeting) for entry in bad] == [
        ("left/1.png", "unreadable", False),
        ("right/2.png", "gone", True),
    ]
    assert read_earlier(whole) == bad
    assert earlier_bytes(bad) == whole
    plan = SimpleNamespace(classes=CLASSES, count=2)
    planned: Any = SimpleNamespace(generation=0, data=b"", plan=plan, part_rows=2)
    ways = made_again(job.store, ImagesConfig(uri=str(tmp_path)), planned)
    listed.write_bytes(b"other")
    assert list(job.restore_plain(ways)) == ["quarantine.tsv"]
    assert listed.read_bytes() == whole
    (tmp_path / "manifest.json").unlink()
    put_quarantine(job, bad, CLASSES)
    job.finish(latents_result(rows=2, train_rows=2, bad=2, mean=(), std=()))
    assert (tmp_path / "manifest.json").read_bytes() == manifest
    assert not (tmp_path / "quarantine.parquet").exists()
