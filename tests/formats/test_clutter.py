"""Which names are images."""

import pytest

from ray_dit.formats.clutter import HIDDEN, SYSTEM, UNNAMED, UNSAFE, why_no_image


@pytest.mark.parametrize(
    "name",
    [
        "cat/1.png", "cat/1.JPEG", "cat/x.jfif", "cat/x.avif", "a/b/c/x.tif", "cat/n01440764_1",
        "cat/a b+%#ü.webp", "cat/_MG_1234.JPG", "1.2.3.png", "cat/license plate.jpg",
    ],
)  # fmt: skip
def test_images(name: str) -> None:
    assert why_no_image(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cat/.DS_Store", HIDDEN), (".git/x.png", HIDDEN), ("cat/.ipynb_checkpoints/0.png", HIDDEN),
        ("dog/._0.png", HIDDEN), ("_old/0.png", HIDDEN), ("a/__MACOSX/0.png", SYSTEM),
        ("cat/Thumbs.db", SYSTEM),
        ("cat/desktop.ini", SYSTEM), ("@eaDir/0.png", SYSTEM), ("$RECYCLE.BIN/0.png", SYSTEM),
        ("cat/x.txt", ".txt"),
        ("cat/x.HEIC", ".heic"), ("cat/x.png.", "other names"), ("cat/README", UNNAMED), ("../0.png", UNSAFE),
        ("/etc/0.png", UNSAFE), ("a/./0.png", UNSAFE), ("a//0.png", UNSAFE), ("a/", UNSAFE), ("", UNSAFE),
        ("a/" + "x" * 5000 + ".png", UNSAFE),
    ],
)  # fmt: skip
def test_others(name: str, reason: str) -> None:
    assert why_no_image(name) == reason
