"""`generate --only`: the pixels that the dataset has, from what its folder says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ray_dit.config import GenerateConfig
from ray_dit.core.media import decode
from ray_dit.errors import NotFound, UserError
from ray_dit.stages.single_images import make_single_images
from tests.stages.test_dataset_formats import shards
from tests.support.made_datasets import dataset_config, make_dataset
from tests.support.tiny import contents, write_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

NAMES = ("left", "middle", "right")
ROWS = [
    {"label": "right", "seed": 7},
    {"label": 0, "num_inference_steps": 2},
    *({"label": at % 3} for at in range(6)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    write_model(folder / "model", NAMES)
    make_dataset(dataset_config(folder / "model", folder / "dataset", num_images=11, classes=("2", "0")))
    return folder


def only(place: Path, output: str, *numbers: int, dataset: str = "dataset", **fields: Any) -> list[str]:
    return make_single_images(
        GenerateConfig(
            model=str(place / "model"),
            output=str(place / dataset),
            only=numbers,
            only_output=str(place / output),
            **fields,
        )
    )


def stored(folder: Path) -> dict[int, bytes]:
    return {
        int(number): data
        for shard in shards(folder)
        for number, data in zip(shard.ids, shard.images, strict=True)
    }


def test_the_files_are_those_of_the_dataset(place: Path) -> None:
    before = contents(place / "dataset")
    written = only(place, "images", 10, 0, 4, 5)
    assert [Path(path).name for path in written] == [f"{number:09d}.png" for number in (0, 4, 5, 10)]
    images = stored(place / "dataset")
    assert all(Path(path).read_bytes() == images[int(Path(path).stem)] for path in written)
    assert contents(place / "dataset") == before
    assert only(place, "images", 4) == [str(place / "images/000000004.png")], "again, to the same bytes"


def test_of_an_unfinished_dataset_too_and_of_plain_pixels(place: Path) -> None:
    fields: dict[str, Any] = {"num_images": 8, "format": "npz", "guidance_scales": (1.0, 4.0)}
    make_dataset(dataset_config(place / "model", place / "whole", **fields))
    images = stored(place / "whole")
    (place / "begun").mkdir()
    shutil.copy(place / "whole/_job.json", place / "begun/_job.json")
    for path in only(place, "pixels", 1, 6, dataset="begun"):
        assert (decode(Path(path).read_bytes()) == decode(images[int(Path(path).stem)])).all()


def test_of_a_list_of_requests(place: Path) -> None:
    (place / "r.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    requests = str(place / "r.jsonl")
    make_dataset(dataset_config(place / "model", place / "asked", requests=requests, image_format="webp"))
    images = stored(place / "asked")
    for path in only(place, "of-requests", 1, 7, dataset="asked", requests=requests):
        assert Path(path).suffix == ".webp"
        assert Path(path).read_bytes() == images[int(Path(path).stem)]
    with pytest.raises(UserError, match="made by a list of requests: give it by --requests"):
        only(place, "of-requests", 1, dataset="asked")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 6}, "was made with another seed: leave out what decides its images"),
        ({"num_images": 12}, "another num_images"),
        ({"classes": ("left", "right")}, "another classes"),
        ({"sampler": {"num_inference_steps": 9}}, r"another sampler.num_inference_steps"),
        ({"image_format": "jpeg"}, "another image_format"),
    ],
)
def test_settings_that_are_not_the_datasets_are_refused(
    place: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        only(place, "refused", 1, **fields)
    assert not (place / "refused").exists()


def test_the_same_settings_may_be_given(place: Path) -> None:
    fields: dict[str, Any] = {"seed": 5, "num_images": 11, "classes": ("right", "0"), "batch_size": 3}
    assert len(only(place, "given", 2, sampler={"num_inference_steps": 3}, **fields)) == 1


def test_what_is_not_there_is_said(place: Path) -> None:
    with pytest.raises(UserError, match="has the images 0 to 10, and no image 11: check --only"):
        only(place, "none", 3, 11)
    with pytest.raises(NotFound, match="holds no dataset of ray-dit, whose images --only could make again"):
        only(place, "none", 3, dataset="model")
    write_model(place / "another/model", ("left", "middle", "wrong"))
    with pytest.raises(UserError, match="the model is not the one that this dataset was made with"):
        make_single_images(
            GenerateConfig(
                model=str(place / "another/model"),
                output=str(place / "dataset"),
                only=(1,),
                only_output=str(place / "none"),
            )
        )
