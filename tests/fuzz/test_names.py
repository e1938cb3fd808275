"""Names of images as a listing brings them: any text, and on a file system also what is none."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_dit.config import ImagesConfig
from ray_dit.errors import UserError
from ray_dit.folders.images import plan_images
from ray_dit.formats.image_format import natural_key


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8))
def test_any_names_have_an_order(names: list[str]) -> None:
    ordered = sorted(names, key=natural_key)
    keys = [natural_key(name) for name in ordered]
    assert keys == sorted(keys)


@pytest.mark.parametrize("name", ["²", "x²/1", "٣", "a/" * 20, "\u0301"])
def test_digits_of_all_scripts_are_text_or_numbers(name: str) -> None:
    natural_key(name)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(str(folder)) + b"/\xff.png")).write_bytes(b"x")
    with pytest.raises(UserError, match="is no UTF-8: rename it"):
        plan_images(ImagesConfig(uri=str(tmp_path), size=16))
