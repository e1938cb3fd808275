"""Pieces of a source listed in Ray tasks: the plan of one process, and a user's error in its own words."""

from pathlib import Path
from typing import Any

import pytest

from ray_dit.config import ImagesConfig, ShardsConfig
from ray_dit.errors import UserError
from ray_dit.folders.images import plan_images
from ray_dit.folders.listing import FEW, KEPT, ListedBy
from ray_dit.runtime.tasks import in_tasks
from ray_dit.storage.open import open_store
from tests.support.layouts import tar_bytes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@pytest.fixture
def images(tmp_path: Path) -> ImagesConfig:
    (tmp_path / "images").mkdir()
    for number in range(FEW + 4):
        files = {f"{image}.png": bytes(image) for image in range(number + 1)}
        (tmp_path / f"images/n{number:02d}.tar").write_bytes(tar_bytes(files))
    return ImagesConfig(uri=str(tmp_path / "images"))


def test_tasks_list_what_one_process_would(images: ImagesConfig, tmp_path: Path, one_ray: Any) -> None:
    output = open_store(str(tmp_path / "latents"))
    over = in_tasks(ShardsConfig(output=output.uri))
    assert plan_images(images, ListedBy(over, output)).to_bytes() == plan_images(images).to_bytes()
    assert len(list(output.list(KEPT))) == FEW + 4


def test_a_damaged_piece_ends_the_planning_with_its_sentence(images: ImagesConfig, one_ray: Any) -> None:
    path = Path(images.uri, "n05.tar")
    path.write_bytes(path.read_bytes()[:1024] + b"x" * 1024)
    with pytest.raises(UserError, match=r"n05.tar is no tar that can be read to its end .*: make it again"):
        plan_images(images, ListedBy(in_tasks(ShardsConfig(output="unused"))))
