"""The same images give the same latent shards, byte by byte, whatever layout they lie in. Without Ray."""

from pathlib import Path

import pytest

from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.folders.images import ImagePlan, plan_images
from ray_dit.folders.stored_plans import Planned, read_plan
from ray_dit.ledger.job import Job
from ray_dit.stages.encode import Encoder
from ray_dit.storage.open import open_store
from tests.support.layouts import LAYOUTS, tar_bytes
from tests.support.tiny import SIZE, write_pictures, write_vae


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    write_pictures(folder / "images", {"left": 7, "ä b+%#": 6})
    for path in (folder / "images").rglob("*.png"):  # names that are unique without their folders
        path.rename(path.with_name(f"{path.parent.name[0]}{path.name}"))
    write_vae(folder / "vae")
    return folder


def shards(place: Path, images: ImagesConfig) -> list[bytes]:
    config = EncodeConfig(
        images=images, vae=str(place / "vae"), output=str(place / "o"), shard_size=5, batch_size=4
    )
    plan = ImagePlan.from_bytes(plan_images(images).to_bytes(), images.uri)
    encoder = Encoder(config, plan)
    made = [encoder.finish(encoder.compute(encoder.prepare(number))) for number in range(3)]
    return [shard.data for shard in made]


def objects_at(folder: Path, objects: dict[str, bytes]) -> Path:
    for key, data in objects.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def wanted(place: Path) -> list[bytes]:
    return shards(place, ImagesConfig(uri=str(place / "images"), size=SIZE, heldout=0.3))


@pytest.mark.parametrize("layout", sorted({*LAYOUTS} - {"folder"}))
def test_every_layout_gives_the_shards_of_the_folder(layout: str, place: Path, wanted: list[bytes]) -> None:
    files = {
        path.relative_to(place / "images").as_posix(): path.read_bytes()
        for path in sorted((place / "images").rglob("*.png"))
    }
    folder = objects_at(place / layout, LAYOUTS[layout](files))
    found = ImagesConfig(uri=str(folder), size=SIZE, heldout=0.3)
    assert plan_images(found).format == layout
    assert shards(place, found) == wanted
    objects = [path for path in folder.rglob("*") if path.is_file()]
    if len(objects) == 1:
        assert shards(place, found.model_copy(update={"uri": str(objects[0])})) == wanted, "the object itself"


@pytest.mark.parametrize("packed", [False, True], ids=["flat folder", "flat tar"])
def test_flat_images_with_a_file_of_labels_give_them_too(
    packed: bool, place: Path, wanted: list[bytes]
) -> None:
    paths = sorted((place / "images").rglob("*.png"))
    lines = [f"{path.stem},{path.parent.name}" for path in paths]
    labels = place / "labels.csv"
    labels.write_text("\n".join(["ImageId,label", *lines]))
    flat = {path.name: path.read_bytes() for path in paths}
    folder = objects_at(place / f"flat-{packed}", {"val.tar": tar_bytes(flat)} if packed else flat)
    found = ImagesConfig(uri=str(folder), size=SIZE, heldout=0.3, labels=str(labels))
    assert shards(place, found) == wanted


@pytest.mark.parametrize("part_rows", [2, 4, 13])
def test_plans_in_parts_give_them_too(
    part_rows: int, place: Path, wanted: list[bytes], tmp_path: Path
) -> None:
    """Shards begin and end within parts, in the middle of them, and with them."""
    images = ImagesConfig(uri=str(place / "images"), size=SIZE, heldout=0.3)
    config = EncodeConfig(
        images=images, vae=str(place / "vae"), output=str(tmp_path), shard_size=5, batch_size=4
    )
    plan = plan_images(images)
    job = Job.open(open_store(config.output), "encode", {"inputs": {"images": plan.sha256}, "rules": 3})
    Planned.new(plan, part_rows=part_rows).stored(job)
    encoder = Encoder(config, read_plan(job.store, 0, images.uri), job)
    made = [encoder.finish(encoder.compute(encoder.prepare(number))) for number in range(3)]
    assert [shard.data for shard in made] == wanted
    again = encoder.make_again(made[1].key, made[1].facts.to_json())
    assert again.data == wanted[1]
