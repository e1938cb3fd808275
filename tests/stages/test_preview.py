"""The preview of a dataset while it is made: which images, when, and that it disturbs nothing."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ray_dit.core.media import PAD, SMALLEST_SIDE
from ray_dit.errors import UserError
from ray_dit.stages import generate as stage
from ray_dit.stages import preview as module
from ray_dit.stages.preview import MOST_IMAGES, SECONDS, Preview, check_preview, chosen, open_preview
from tests.support.made_datasets import dataset_config, put_shards
from tests.support.tiny import contents, write_model


def test_an_image_per_class_or_evenly_spaced_ones() -> None:
    assert chosen(np.array([1, 0, 2, 1, 0])) == [1, 0, 2]
    assert chosen(np.array([4, 4, 4])) == [0, 1, 2], "of one class there is more to see than its first"
    many = chosen(np.arange(1000))
    assert (len(many), many[0], many[-1]) == (MOST_IMAGES, 0, 999)
    assert max(np.diff(many)) - min(np.diff(many)) <= 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(preview: Preview, *finished: int) -> None:
    """Tells it, and waits for what it draws."""
    with preview:
        preview(finished)


def test_it_is_drawn_once_twice_as_many_are_finished_or_after_a_while() -> None:
    drawn, clock = list[int](), Clock()
    preview = Preview(drawn.append, clock)
    told(preview)
    assert drawn == []
    for shard in range(9):
        told(preview, shard)
    assert drawn == [0, 1, 3, 7]
    clock.now = SECONDS
    told(preview)
    assert drawn == [0, 1, 3, 7, 8]
    clock.now = 2 * SECONDS
    told(preview)
    assert drawn == [0, 1, 3, 7, 8], "nothing has been finished since"


def test_what_can_not_be_drawn_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def draw(shard: int) -> None:
        raise OSError(f"no room for {shard}")

    preview = Preview(draw)
    for shard in range(4):
        told(preview, shard)
    assert capsys.readouterr().err == "generate: the preview can't be drawn: no room for 0\n"


@pytest.mark.parametrize("stored_as", ["parquet", "webdataset", "folder", "npz"])
def test_the_images_of_a_finished_shard_in_any_format(
    tmp_path: Path, stored_as: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model", ("left", "middle", "right"))
    target = tmp_path / "preview.png"
    config = dataset_config(
        tmp_path / "model", tmp_path / "dataset", num_images=8, format=stored_as, preview=str(target)
    )
    settled = stage.settle(config)
    job = stage._open(config, settled)
    put_shards(config, job, settled)
    before = contents(tmp_path / "dataset")
    preview = open_preview(config, job)
    assert preview is not None
    told(preview, 1)
    with PIL.Image.open(io.BytesIO(target.read_bytes())) as image:
        assert image.size == (2 * SMALLEST_SIDE + PAD, 2 * SMALLEST_SIDE + PAD), "three classes in two rows"
    first = target.read_bytes()
    told(preview, 0)
    assert target.read_bytes() != first
    assert contents(tmp_path / "dataset") == before
    monkeypatch.setattr(module, "LARGEST_SHARD", 10)
    told(preview, 0, 1)
    assert "is too large to look in" in capsys.readouterr().err


def test_where_it_may_lie(tmp_path: Path) -> None:
    def config(preview: Path) -> None:
        check_preview(
            dataset_config(tmp_path / "model", tmp_path / "out", num_images=1, preview=str(preview))
        )

    config(tmp_path / "out.png")
    with pytest.raises(UserError, match="is no name of a PNG"):
        config(tmp_path / "preview")
    with pytest.raises(UserError, match="would lie among the objects of the dataset"):
        config(tmp_path / "out" / "preview.png")
