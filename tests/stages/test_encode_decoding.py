"""encode's threads, actors and reservations on a real Ray: when and where, never what."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ray_dit.cli.commands import COMMANDS
from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.core.media import decode_image
from ray_dit.core.to_rgb import UnreadableImage
from ray_dit.errors import UserError
from ray_dit.folders.careful import ChildDecoder
from ray_dit.folders.images import ImagePlan
from ray_dit.folders.loading import Loader
from ray_dit.folders.quarantine import read_quarantine
from ray_dit.folders.reading import Decode
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.ledger.results import Marker
from ray_dit.ledger.stored_json import canonical
from ray_dit.results import RESULTS, LatentShardFacts, LatentsResult
from ray_dit.runtime.shard_maker import ShardMaker
from ray_dit.runtime.shards import Work, make_shards, shard_sizes
from ray_dit.stages.encode import Encoder, begin, encode, planned_images
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE, files_sha256
from tests.support import deadly
from tests.support.killed import unfinish
from tests.support.tiny import SIZE, contents, write_pictures, write_vae

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds, two of them bad."""
    folder = tmp_path_factory.mktemp("decoding")
    write_pictures(folder / "images", {"left": 13, "right": 12}, size=40)
    for path, mode in zip(sorted((folder / "images").rglob("*.png"))[::3], "LPLAPL", strict=False):
        Image.open(path).convert({"A": "RGBA"}.get(mode, mode)).save(path)
    (folder / "images/left/02.png").write_bytes(b"no image")
    cut = folder / "images/right/04.png"
    cut.write_bytes(cut.read_bytes()[:300])
    write_vae(folder / "vae")
    return folder


def settings(place: Path, output: str, **fields: Any) -> EncodeConfig:
    max_bad = fields.pop("max_bad", 0.2)
    where = str(fields.pop("images", place / "images"))
    images = ImagesConfig(uri=where, size=SIZE, heldout=0.3, max_bad=max_bad)
    given = {"shard_size": 4, "batch_size": 4, "actors": 1} | fields
    return EncodeConfig(images=images, vae=str(place / "vae"), output=str(place / output), **given)


@pytest.fixture(scope="module")
def whole(place: Path, one_ray: Any) -> dict[str, str]:
    """What one actor with one thread makes."""
    encode(settings(place, "latents", decode_threads=1))
    assert read_manifest(open_store(str(place / "latents")), LatentsResult).facts.bad == 2
    return contents(place / "latents")


def test_conversions_are_counted_by_shard_and_in_all(
    place: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found: Counter[str] = Counter()
    converted = bad = 0
    for path in (place / "images").rglob("*.png"):
        try:
            names = decode_image(path.read_bytes()).conversions
        except UnreadableImage:
            bad += 1
            continue
        found.update(names)
        converted += bool(names)
    store = open_store(str(place / "latents"))
    manifest = read_manifest(store, LatentsResult)
    assert manifest.facts.conversions == found
    assert {*found} == {"grey", "palette"}
    assert (manifest.facts.converted, manifest.facts.bad) == (converted, bad)
    shards = [marker.facts for marker in manifest_objects(store, manifest, LatentShardFacts)]
    assert all(shard.adds_up(size) for shard, size in zip(shards, [4, 4, 4, 4, 4, 4, 1], strict=True))
    assert sum(shard.converted for shard in shards) == converted
    assert list(verify(store, results=RESULTS)) == []
    COMMANDS["encode"].run(settings(place, "latents"))
    kinds = f"{found['grey']} grey, {found['palette']} palette"
    assert f"({converted} images were converted to RGB: {kinds})" in capsys.readouterr().out


def test_a_marker_that_does_not_account_for_each_image_does_not_finish(
    place: Path, whole: dict[str, str]
) -> None:
    shutil.copytree(place / "latents", place / "short")
    unfinish(place / "short")
    job = Job(open_store(str(place / "short")), "encode", "")
    marker = job.marker("00003", LatentShardFacts)
    assert marker is not None
    short = replace_facts(marker, rows=marker.facts.rows - 1, seen=marker.facts.seen - 1)
    (place / "short/_markers/00003.json").write_bytes(canonical(short.to_json()))
    with pytest.raises(
        UserError, match="00003.parquet and its marker do not account for each of its 4 images"
    ):
        encode(settings(place, "short"))
    (place / "short/_markers/00003.json").unlink()
    encode(settings(place, "short"))
    assert contents(place / "short") == whole


def replace_facts(marker: Marker[LatentShardFacts], **fields: int) -> Marker[LatentShardFacts]:
    return marker.model_copy(update={"facts": marker.facts.model_copy(update=fields)})


@pytest.mark.parametrize(("threads", "actors"), [(3, 1), (1, 2), (7, 2)])
def test_threads_and_actors_change_no_byte(
    place: Path, whole: dict[str, str], threads: int, actors: int
) -> None:
    output = f"latents-{threads}-{actors}"
    encode(settings(place, output, decode_threads=threads, actors=actors))
    assert contents(place / output) == whole


def test_too_many_bad_images_end_the_job_at_once_and_raising_the_limit_goes_on(
    place: Path, whole: dict[str, str]
) -> None:
    strict = {"max_bad": 0.02, "shard_size": 1, "decode_threads": 1}
    with pytest.raises(UserError, match="at least 1 of 25 images .*max_bad = 0.02 .* 'left/02.png'.*raise"):
        encode(settings(place, "strict", **strict))
    made = sorted((place / "strict/_markers").iterdir())
    assert 3 <= len(made) < 15, "the third image is bad, and a few more shards may be under way"
    before = {path: path.stat().st_mtime_ns for path in made}
    with pytest.raises(UserError, match="at least 1 of 25 images"):  # without a Ray: nothing answers there
        encode(settings(place, "strict", address="127.0.0.1:1", **strict))
    with pytest.raises(UserError, match="2 of 25 images .*0.04 .* 'left/02.png' .*, then 'right/04.png'"):
        encode(settings(place, "strict", **strict | {"max_bad": 0.04}))
    manifest = encode(settings(place, "strict", **strict | {"max_bad": 0.08}))
    assert (manifest.facts.rows, manifest.facts.bad) == (23, 2)
    assert {path: path.stat().st_mtime_ns for path in made} == before
    encode(settings(place, "tolerant", **strict | {"max_bad": 0.5, "actors": 2}))
    assert contents(place / "tolerant") == contents(place / "strict")


@dataclass(frozen=True)
class Fragile:
    """Makes an encoder that decodes as ``decode`` does, and carefully in a child that is as fragile."""

    config: EncodeConfig
    decode: Decode
    job: Job
    plan: ImagePlan

    def __call__(self) -> ShardMaker:
        child = ChildDecoder(deadly.CHILD)
        return Encoder(self.config, self.plan, self.job, loader=Loader(1, decode=self.decode), child=child)


def spoiled(place: Path, name: str, **endings: bytes) -> Path:
    """The images, some of which do to a fragile decoder what their endings say."""
    if not (place / name).exists():
        shutil.copytree(place / "images", place / name)
        for key, ending in endings.items():
            path = place / name / f"{key.replace('_', '/')}.png"
            path.write_bytes(path.read_bytes() + ending)
    return place / name


def make_fragile(ray: Any, config: EncodeConfig, decode: Decode) -> None:
    """All shards, by a fragile encoder."""
    planned, job = begin(config, planned_images(config), files_sha256(VAE.load(config.vae).files()))
    sizes = shard_sizes(len(planned.plan.keys), config.shard_size)
    make_shards(ray, config, job, Fragile(config, decode, job, planned.plan), Work("encode", "images", sizes))


def test_an_image_that_ends_its_process_is_set_aside_as_if_at_once(place: Path, one_ray: Any) -> None:
    images = spoiled(place, "deadly", left_06=deadly.ABORT, right_09=deadly.EXIT)
    for output, decode in (("died", deadly.deadly), ("at-once", deadly.set_aside_at_once)):
        config = settings(place, output, images=images)
        make_fragile(one_ray, config, decode)
        assert encode(config).facts.bad == 4
    assert contents(place / "died") == contents(place / "at-once")
    listed = {entry.key: entry for entry in read_quarantine((place / "died/quarantine.parquet").read_bytes())}
    assert [entry.code for entry in listed.values()] == ["unreadable", "crash", "unreadable", "crash"]
    assert listed["left/06.png"].bytes == (images / "left/06.png").stat().st_size
    deaths = [path.read_text() for path in (place / "died/_runs").glob("*/events/*.json")]
    assert any("the process that made it died" in death for death in deaths), "it has really happened"


@pytest.mark.slow
def test_an_image_that_hangs_is_never_set_aside(place: Path, one_ray: Any) -> None:
    images = spoiled(place, "hanging", left_06=deadly.HANG)
    config = settings(place, "hung", images=images, shard_deadline=12.0)
    with pytest.raises(UserError, match=r"1 of 7 shards failed in all 3 tries .shard 1: it was not finished"):
        make_fragile(one_ray, config, deadly.deadly)
    assert sorted(path.name for path in (place / "hung/_markers").iterdir()) == [
        f"0000{shard}.json" for shard in (0, 2, 3, 4, 5, 6)
    ]
