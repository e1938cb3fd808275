"""`ray-dit info` of latents: counts, what was set aside, a sheet of what its VAE makes of them. No Ray."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from ray_dit.cli.main import main
from ray_dit.core.latents import to_float, to_uint8
from ray_dit.errors import Damaged, UserError
from ray_dit.folders import latent_summary
from ray_dit.folders.latent_summary import sample_moments, summarize
from ray_dit.folders.quarantine import earlier_bytes, quarantine_bytes, quarantine_key
from ray_dit.formats.latents import LatentShard, latent_shard_bytes, read_latent_shard
from ray_dit.ledger.job import Job
from ray_dit.ledger.manifest import read_manifest
from ray_dit.results import BadImage, LatentsResult
from ray_dit.stages.info import describe, write_sheet
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE, files_sha256
from tests.support.results import latent_facts, latents_result
from tests.support.tiny import SIZE, VAE_SIZE, flip_bit

BAD = [
    BadImage("a/1.png", "truncated (12 bytes)", "unreadable"),
    BadImage("a/2.png", "truncated (7 bytes)", "unreadable"),
    BadImage("b/1.png", "gone", "gone"),
]


def picture(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)


def write_latents(folder: Path, labels: list[list[int]], names: tuple[str, ...], **fields: Any) -> VAE:
    """Finished latents, a list of labels per shard; row number n is ``picture(n)``."""
    vae = VAE.create(VAE_SIZE)
    files = vae.files()
    parts = {"config": {"mirror": False}, "inputs": {"vae": files_sha256(files)}}
    job = Job.open(open_store(str(folder)), "encode", parts)
    for name, data in files.items():
        job.put_plain(f"vae/{name}", data)
    markers, first = [], 0
    for number, shard in enumerate(labels):
        rows = range(first, first + len(shard))
        images = torch.from_numpy(np.stack([picture(row) for row in rows]))
        moments = vae.encode(to_float(images)).numpy().astype(np.float16)
        latents = LatentShard(
            [f"{row}" for row in rows],
            np.array(shard),
            np.zeros(len(rows), bool),
            moments,
            None,
            np.zeros((len(rows), 32), np.uint8),
        )
        name = f"{number:05d}"
        key, data = f"latents/{name}.parquet", latent_shard_bytes(latents)
        markers.append(job.put(name, key, data, latent_facts(number, len(rows))))
        first = rows.stop
    job.put_plain(quarantine_key(), quarantine_bytes(BAD, names))
    facts = {"rows": first, "train_rows": first - 1, "bad": len(BAD), "classes": names} | fields
    job.finish(latents_result(**facts), objects=markers)
    return vae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_latents(tmp_path / "latents", [[0, 0, 1], [1, 1, 2]], ("ant", "bee", "cow", "dodo"))
    return tmp_path / "latents"


def test_people_are_told_what_latents_hold(folder: Path) -> None:
    said = describe(str(folder))
    assert "  images       6: 5 to train on, 1 held out\n" in said
    assert f"  image size   {SIZE}x{SIZE} pixels\n" in said
    assert "  latents      4x8x8 per image, as mean and log-variance in float16\n" in said
    assert "  mean         0 0 0 0 per channel" in said
    assert "  std          1 1 1 1 per channel\n" in said
    assert "  scaling      1, " in said
    assert "  classes      4: ant 2, bee 3, cow 1, dodo 0\n" in said
    assert "  set aside    3 of 9 images: unreadable 2, gone 1\n" in said
    size = sum(path.stat().st_size for path in (folder / "latents").iterdir())
    assert f"  stored       {size / 1000:.1f} kB in 2 shards, {size // 6 / 1000:.1f} kB per image\n" in said
    assert "conversions" not in said


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0, 0), "no image is a copy of another"),
        (
            (1200, 3, 2),
            "1,200 copies of an image of the same class, 3 of one of another class; 2 count as held out, "
            "being copies of held-out images",
        ),
    ],
)
def test_exact_copies_are_told(tmp_path: Path, counts: tuple[int, int, int], said: str) -> None:
    found = dict(zip(("within_classes", "across_classes", "heldout"), counts, strict=True))
    write_latents(tmp_path / "latents", [[0]], ("ant",), duplicates=found)
    assert f"  duplicates   {said}\n" in describe(str(tmp_path / "latents"))


def test_what_other_versions_write_is_told_too(tmp_path: Path) -> None:
    fields = {"conversions": {"grey16": 1234, "transparent": 5}, "unheard_of": 7}
    write_latents(tmp_path / "latents", [[0]], ("ant",), **fields)
    listed = tmp_path / "latents" / quarantine_key()
    listed.unlink()
    listed.with_suffix(".tsv").write_bytes(earlier_bytes(BAD))
    said = describe(str(tmp_path / "latents"))
    assert "  conversions  grey16 1,234, transparent 5\n" in said
    assert "  unheard_of   7\n" in said
    assert "  set aside    3 of 4 images: truncated (# bytes) 2, gone 1\n" in said
    listed.write_bytes(b"broken")
    assert "images: a list that can't be read 1\n" in describe(str(tmp_path / "latents"))


def test_of_many_classes_the_largest_and_smallest_are_named(tmp_path: Path) -> None:
    names = tuple(f"class {number} {'x' * 100}" for number in range(50))
    write_latents(tmp_path / "latents", [[*range(40), 7, 7]], names)
    lines = describe(str(tmp_path / "latents")).splitlines()
    (line,) = (line for line in lines if line.startswith("  classes"))
    assert "50 (10 have none); most images: class 7 xx" in line
    assert "... 3, class 0 " in line
    assert line.endswith("... 0")
    assert len(line) < 700


def test_names_are_text_and_labels_classes(tmp_path: Path) -> None:
    write_latents(tmp_path / "odd", [[0]], ("a\x1b[2Jb\n",))
    assert "  classes      1: a?[2Jb? 1\n" in describe(str(tmp_path / "odd"))
    write_latents(tmp_path / "latents", [[0], [7]], ("ant",))
    assert "00001.parquet is damaged (a label is no class)" in describe(str(tmp_path / "latents"))
    with pytest.raises(UserError, match="a label is no class"):
        write_sheet(str(tmp_path / "latents"), str(tmp_path / "sheet.png"))


def test_a_damaged_shard_hides_counts_and_nothing_else(folder: Path) -> None:
    (folder / "latents/00001.parquet").write_bytes(b"nothing")
    said = describe(str(folder))
    assert "images       6: " in said
    assert "00001.parquet is damaged" in said
    assert "fingerprint" in said


def test_a_sample_is_spread_over_classes_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latents(tmp_path / "latents", [[0, 0, 1, 2], [1, 1, 1, 2, 3], [4] * 6], ("a", "b", "c", "d", "e"))
    store = open_store(str(tmp_path / "latents"))
    manifest = read_manifest(store, LatentsResult)
    found = sample_moments(store, manifest)
    assert {label: len(moments) for label, moments in found.items()} == {0: 2, 1: 3, 2: 1, 3: 1, 4: 6}
    monkeypatch.setattr(latent_summary, "MOST_CLASSES", 3)
    monkeypatch.setattr(latent_summary, "MOST_IMAGES", 2)
    fewer = sample_moments(store, manifest)
    assert [*fewer] == [0, 2, 4]
    np.testing.assert_array_equal(fewer[4], found[4][[0, 5]])
    assert summarize(store, manifest).images.tolist() == [2, 4, 2, 1, 6]


def test_the_sheet_shows_what_the_vae_makes_of_the_latents(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "sheet.png"
    target.write_bytes(b"an older one")
    main(["info", str(folder), "--sheet", str(target)])
    assert f"contact sheet: {target}" in capsys.readouterr().out
    sheet = np.asarray(PIL.Image.open(io.BytesIO(target.read_bytes())))
    vae = VAE.load(str(folder))
    for row in (0, 1, 3, 4, 5):  # of the bees those in the shard with most
        moments = vae.encode(to_float(torch.from_numpy(picture(row)[None])))[:, :4]
        image = to_uint8(vae.decode(moments.half().float())).numpy()[0].astype(int)
        large = image.repeat(4, axis=0).repeat(4, axis=1)
        assert any(
            np.abs(window - large).max() <= 1 for window in windows(sheet.astype(int), large.shape[:2])
        ), f"row {row} is shown"
    before = target.read_bytes()
    write_sheet(str(folder), str(target))
    assert target.read_bytes() == before


def windows(sheet: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The parts of a sheet that may be an image: 66 pixels from each other, right of the names."""
    height, width = shape
    lefts = list(range(sheet.shape[1] - width, 0, -(width + 2)))
    return [
        sheet[top : top + height, left - 2 : left - 2 + width]
        for top in range(2, sheet.shape[0], height + 2)
        for left in lefts
    ]


def test_no_sheet_of_what_is_damaged_or_no_picture(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give one that ends in .png"):
        write_sheet(str(folder), str(tmp_path / "sheet.jpg"))
    flip_bit(folder / "latents/00000.parquet")
    with pytest.raises(Damaged):
        write_sheet(str(folder), str(tmp_path / "sheet.png"))
    flip_bit(folder / "latents/00000.parquet")
    flip_bit(folder / "vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(Damaged):
        write_sheet(str(folder), str(tmp_path / "sheet.png"))
    assert not (tmp_path / "sheet.png").exists()


def test_the_lines_in_the_docs_read_the_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs/latents.md"
    (lines,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(folder.parent)
    found: dict[str, Any] = {}
    exec(lines, found)
    assert len(lines.split("\n")) - lines.count("\n\n") - 1 == 4
    shards = [read_latent_shard(path.read_bytes()) for path in sorted((folder / "latents").iterdir())]
    np.testing.assert_array_equal(found["moments"], np.concatenate([shard.moments for shard in shards]))
    assert found["table"]["key"].to_pylist() == [key for shard in shards for key in shard.keys]
    assert found["table"]["label"].to_pylist() == [0, 0, 1, 1, 1, 2]
    named = re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE)
    assert found["table"].column_names == [name for name in named if "mirror" not in name]
