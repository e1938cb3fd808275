"""encode on a real Ray while its input changes: its plan is fixed, what is lost is told, --extend adds."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_dit.config import EncodeConfig, ImagesConfig
from ray_dit.core.order import is_heldout
from ray_dit.errors import Conflict, NotFound, UserError
from ray_dit.folders.duplicates import copies_of_heldout
from ray_dit.folders.images import plan_images
from ray_dit.folders.latents import open_latent_rows
from ray_dit.folders.quarantine import read_quarantine
from ray_dit.folders.stored_plans import plan_key
from ray_dit.formats.latents import LatentShard, read_latent_shard
from ray_dit.ledger.job import Job
from ray_dit.ledger.maintenance import verify
from ray_dit.ledger.manifest import manifest_objects, read_manifest
from ray_dit.ledger.results import Manifest
from ray_dit.report.gather import stage_times
from ray_dit.results import RESULTS, LatentShardFacts, LatentsResult
from ray_dit.stages.encode import begin, encode, plan_encode, planned_images
from ray_dit.stages.fingerprint import STAGE_RULES, parts
from ray_dit.stages.info import describe
from ray_dit.storage.open import open_store
from ray_dit.vae import VAE, files_sha256
from tests.support.killed import unfinish
from tests.support.results import latent_facts, latents_result
from tests.support.tiny import (
    SIZE,
    VAE_SIZE,
    contents,
    flip_bit,
    kinds_of_machines,
    times,
    write_pictures,
    write_vae,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]

HELDOUT = 0.3
NEW = {"left/99.png", "aaa/00.png", "aaa/01.png", "aaa/02.png", "right/98.png", "right/99.png"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changing")
    write_pictures(folder / "images", {"left": 11, "right": 9})
    write_pictures(folder / "new", {"left": 1, "aaa": 3, "right": 2})
    write_vae(folder / "vae")
    return folder


def settings(place: Path, output: str, images: str = "images", **fields: Any) -> EncodeConfig:
    pictures = {"uri": str(place / images), "size": SIZE, "heldout": HELDOUT}
    pictures |= {"max_bad": fields.pop("max_bad", 0.01)}
    config = {"shard_size": 8, "batch_size": 4, "vae": str(place / "vae"), "output": str(place / output)}
    return EncodeConfig(images=ImagesConfig(**pictures), actors=1, **(config | fields))


@pytest.fixture(scope="module")
def encoded(place: Path, one_ray: Any) -> Manifest[LatentsResult]:
    return encode(settings(place, "latents"))


def copy_of(place: Path, what: str, name: str) -> Path:
    shutil.copytree(place / what, place / name)
    return place / name


def rows(folder: Path) -> dict[str, tuple[int, bool, bytes]]:
    """Of each image: class, whether it is held out, moments."""
    found: dict[str, tuple[int, bool, bytes]] = {}
    for path in sorted((folder / "latents").glob("*.parquet")):
        shard: LatentShard = read_latent_shard(path.read_bytes())
        for number, key in enumerate(shard.keys):
            assert key not in found
            heldout = bool(shard.heldout[number])
            found[key] = int(shard.labels[number]), heldout, shard.moments[number].tobytes()
    return found


def quarantined(folder: Path, name: str = "quarantine.parquet") -> dict[str, str]:
    return {entry.key: entry.code for entry in read_quarantine((folder / name).read_bytes())}


def complaints(folder: Path) -> list[str]:
    return [str(problem) for problem in verify(open_store(str(folder)), results=RESULTS)]


# The plan is fixed


def test_a_killed_run_goes_on_though_its_images_have_changed(
    place: Path, encoded: Manifest[LatentsResult], capfd: pytest.CaptureFixture[str]
) -> None:
    images, folder = copy_of(place, "images", "some-lost"), copy_of(place, "latents", "went-on")
    unfinish(folder, "00001")
    lost, kept = images / "left/10.png", (images / "left/10.png").read_bytes()
    lost.unlink()
    other, whole = images / "right/01.png", (images / "right/01.png").read_bytes()
    other.write_bytes(whole + b"more")
    shutil.copy(images / "left/00.png", images / "left/zz.png")
    with pytest.raises(
        UserError,
        match="2 of 20 images .* 'left/10.png' .its object is gone since .*: bring those back that are",
    ):
        encode(settings(place, folder.name, images.name))
    assert len(list((folder / "_markers").iterdir())) == 2, "the shard that lacks them is made again"
    manifest = encode(settings(place, folder.name, images.name, max_bad=0.1))
    gone = {"left/10.png": "gone", "right/01.png": "changed"}
    assert quarantined(folder) == gone
    assert (manifest.facts.rows, manifest.facts.bad) == (18, 2)
    assert rows(folder).keys() == rows(place / "latents").keys() - gone.keys()
    assert complaints(folder) == []
    assert kinds_of_machines(folder) == 1
    # they are back, but what is finished is finished; and a shard comes back as it was, without them
    lost.write_bytes(kept)
    other.write_bytes(whole)
    before = contents(folder)
    capfd.readouterr()
    assert encode(settings(place, folder.name, images.name)) == manifest
    assert "images added since it was begun are left out; --extend adds them" in capfd.readouterr().err
    flip_bit(folder / "latents/00001.parquet")
    assert encode(settings(place, folder.name, images.name, repair=True)) == manifest
    assert contents(folder) == before


@pytest.mark.parametrize("marked", [True, False])
def test_images_that_come_back_in_time_leave_no_trace(
    place: Path, encoded: Manifest[LatentsResult], marked: bool
) -> None:
    images, folder = copy_of(place, "images", f"back-{marked}"), copy_of(place, "latents", f"as-if-{marked}")
    unfinish(folder, "00000", marked=marked)  # marked: the killed writer had seen the image
    lost = images / "left/03.png"
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(UserError, match="1 of 20 images .* bring those back"):
        encode(settings(place, folder.name, images.name))
    lost.write_bytes(kept)
    assert encode(settings(place, folder.name, images.name)) == encoded
    assert contents(folder) == contents(place / "latents")


def test_a_shard_whose_image_is_lost_cannot_be_repaired_and_says_why(
    place: Path, encoded: Manifest[LatentsResult]
) -> None:
    images, folder = copy_of(place, "images", "lost-later"), copy_of(place, "latents", "unrepaired")
    (images / "left/03.png").unlink()
    flip_bit(folder / "latents/00000.parquet")
    with pytest.raises(UserError, match="00000.parquet can't be made again, as left/03.png in .* is gone"):
        encode(settings(place, folder.name, images.name, repair=True))


def test_latents_of_other_images_are_not_taken_for_theirs(
    place: Path, encoded: Manifest[LatentsResult]
) -> None:
    write_pictures(place / "others", {"left": 11, "right": 9}, size=2 * SIZE)
    for extend in (False, True):
        with pytest.raises(UserError, match="holds the latents of other images than those in .*others"):
            encode(settings(place, "latents", "others", extend=extend))
    with pytest.raises(UserError, match="holds the latents of other images"):
        encode(settings(place, "latents", "nowhere"))


def begun_before(config: EncodeConfig, rules: int) -> Job:
    """A folder with a plan, begun by a version with these rules."""
    plan = plan_images(config.images)
    if rules == 1:
        plan = replace(plan, sizes=None, versions=None)
    vae = files_sha256(VAE.load(config.vae).files())
    asked = parts(config, "encode", {"images": plan.sha256, "vae": vae}, rules=rules)
    job = Job.open(open_store(config.output), "encode", asked)
    job.put_plain(plan_key(), plan.to_bytes())
    return job


@pytest.mark.parametrize("begun", [1, 3])
def test_a_folder_of_before_goes_on_with_its_plan_and_its_form(
    place: Path, encoded: Manifest[LatentsResult], begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While later rules have changed nothing but plans and the form of shards."""
    config = settings(place, f"of-before-{begun}")
    job, folder = begun_before(config, begun), Path(config.output)
    plan = (folder / plan_key()).read_bytes()
    if begun == 1:
        with pytest.raises(Conflict, match="was begun under rules 1 of encode"):
            encode(config)
        monkeypatch.setitem(STAGE_RULES, "encode", STAGE_RULES["encode"][:2])
    manifest = encode(config)
    assert manifest.fingerprint == job.fingerprint
    assert manifest.parts.get("rules", 1) == begun
    assert complaints(folder) == []
    shards = sorted(folder.glob("latents/*.parquet"))
    assert len(shards) == 3
    for path in shards:
        theirs = pq.read_table(place / "latents/latents" / path.name)
        assert pq.read_table(path).equals(theirs.drop(["moments_crc32", "moments_mirror_crc32"]))
    assert (folder / plan_key()).read_bytes() == plan
    before = contents(folder)
    flip_bit(shards[1])
    encode(config.model_copy(update={"repair": True}))
    assert contents(folder) == before


def test_of_two_drivers_that_found_other_images_the_first_counts(place: Path, tmp_path: Path) -> None:
    images = copy_of(place, "images", "two-drivers")
    config = settings(place, "x", images.name).model_copy(update={"output": str(tmp_path)})
    first = planned_images(config)
    (images / "left/03.png").unlink()
    second = planned_images(config)
    assert first.plan.sha256 != second.plan.sha256
    asked = parts(config, "encode", {"images": first.plan.sha256, "vae": "vae"})
    Job.open(open_store(config.output), "encode", asked)  # and there it sleeps for a moment
    later = threading.Timer(1.0, lambda: begin(config, first, "vae"))
    later.start()
    planned, job = begin(config, second, "vae")
    later.join()
    assert planned.plan.keys == first.plan.keys
    assert job == begin(config, planned_images(config), "vae")[1]
    with pytest.raises(Conflict, match="config.mirror: True -> False"):
        begin(config.model_copy(update={"mirror": False}), planned_images(config), "vae")


def test_a_run_that_died_before_its_plan_says_what_to_do(place: Path, tmp_path: Path) -> None:
    images = copy_of(place, "images", "died")
    config = settings(place, "x", images.name).model_copy(update={"output": str(tmp_path)})
    asked = parts(config, "encode", {"images": planned_images(config).plan.sha256, "vae": "vae"})
    Job.open(open_store(config.output), "encode", asked)
    (images / "left/03.png").unlink()
    with pytest.raises(
        Conflict, match="inputs.images: .* nothing was made there yet, so delete it if no run"
    ):
        begin(config, planned_images(config), "vae")


# Extensions


@pytest.fixture(scope="module")
def extended(place: Path, encoded: Manifest[LatentsResult]) -> Manifest[LatentsResult]:
    """An undisturbed extension of a copy, in ``more``, of the images in ``grown``, by those in ``new``."""
    shutil.copytree(place / "images", place / "grown")
    shutil.copytree(place / "latents", place / "more", copy_function=shutil.copy2)
    for number, key in enumerate(sorted(NEW)):
        (place / "grown" / key).parent.mkdir(exist_ok=True)
        sources = sorted((place / "new").rglob("*.png"))
        shutil.copy(sources[number], place / "grown" / key)
    return encode(settings(place, "more", "grown", extend=True, shard_size=8))


def test_an_extension_adds_what_is_new_beside_what_there_was(
    place: Path, encoded: Manifest[LatentsResult], extended: Manifest[LatentsResult]
) -> None:
    folder = place / "more"
    old, now = times(place / "latents"), times(folder)
    for path, time in old.items():
        same = path.replace(str(place / "latents"), str(folder))
        assert now[same] == time or "_runs" in path, f"{same} was written again"
    assert (extended.extends, len(extended.listings)) == (encoded.sha256, 2)
    assert extended.facts.classes == ("left", "right", "aaa")
    before, after = rows(place / "latents"), rows(folder)
    assert after.keys() == before.keys() | NEW
    assert before.items() <= after.items()
    for key in NEW:
        label, heldout, _ = after[key]
        assert extended.facts.classes[label] == key.split("/")[0]
        assert heldout == is_heldout(key, HELDOUT)
    assert sorted(path.name for path in (folder / "latents").iterdir()) == [
        *(f"0000{number}.parquet" for number in range(3)),
        "g01-00000.parquet",
    ]
    assert {"plan-g01.parquet", "quarantine-g01.parquet"} <= {path.name for path in folder.iterdir()}
    assert complaints(folder) == []
    assert kinds_of_machines(folder) == 1


def test_the_facts_of_an_extension_are_totals(place: Path, extended: Manifest[LatentsResult]) -> None:
    shards = [
        read_latent_shard(path.read_bytes()) for path in sorted((place / "more/latents").glob("*.parquet"))
    ]
    copies = copies_of_heldout(open_store(str(place / "more")), extended.generation)
    training = [~shard.heldout & ~np.isin(shard.keys, list(copies)) for shard in shards]
    moments = np.concatenate([s.moments[rows] for s, rows in zip(shards, training, strict=True)])
    moments = moments.astype(np.float64)
    mean, second = moments[:, :4], moments[:, :4] ** 2 + np.exp(moments[:, 4:])
    facts = extended.facts
    assert (facts.rows, facts.train_rows, facts.bad) == (26, len(moments), 0)
    np.testing.assert_allclose(facts.mean, mean.mean(axis=(0, 2, 3)), rtol=1e-9)
    std = np.sqrt(second.mean(axis=(0, 2, 3)) - mean.mean(axis=(0, 2, 3)) ** 2)
    np.testing.assert_allclose(facts.std, std, rtol=1e-9)
    about = describe(str(place / "more"))
    assert "images       26: " in about
    assert "generations  20 images first, 6 by extension 1\n" in about
    assert "extensions   1" in about
    assert sum(time.count for time in stage_times("encode", open_store(str(place / "more")))) >= 26


def test_whoever_trains_on_it_sees_the_rows_of_all_generations_in_order(
    place: Path, encoded: Manifest[LatentsResult], extended: Manifest[LatentsResult], tmp_path: Path
) -> None:
    store = open_store(str(place / "more"))
    for manifest, count in ((encoded, 20), (extended, 26)):
        markers = manifest_objects(store, manifest, LatentShardFacts)
        opened = open_latent_rows(store, markers, manifest.sha256, tmp_path)
        assert len(opened.labels) == count
        expected = [(label, heldout, data) for label, heldout, data in rows(place / "more").values()]
        moments = opened.take(np.arange(count), np.zeros(count, np.int64))
        found = zip(opened.labels.tolist(), opened.heldout.tolist(), moments, strict=True)
        assert [(*row, moments.tobytes()) for *row, moments in found] == expected[:count]
        opened.close()


def test_an_extension_of_a_folder_of_before_has_the_new_form(
    place: Path, extended: Manifest[LatentsResult], tmp_path: Path
) -> None:
    config = settings(place, "extended-of-before")
    begun_before(config, 3)
    encode(config)
    manifest = encode(settings(place, "extended-of-before", "grown", extend=True, shard_size=8))
    names = [path.name for path in sorted(Path(config.output).glob("latents/*"))]
    forms = [pq.read_schema(f"{config.output}/latents/{name}").names for name in names]
    assert ["moments_crc32" in form for form in forms] == [name.startswith("g01-") for name in names]
    store = open_store(config.output)
    markers = manifest_objects(store, manifest, LatentShardFacts)
    opened = open_latent_rows(store, markers, manifest.sha256, tmp_path)
    found = opened.take(np.arange(26), np.zeros(26, np.int64))
    assert [moments.tobytes() for moments in found] == [data for *_, data in rows(place / "more").values()]
    opened.close()


def test_nothing_new_is_said(
    place: Path, extended: Manifest[LatentsResult], capfd: pytest.CaptureFixture[str]
) -> None:
    before = times(place / "more")
    assert encode(settings(place, "more", "grown", extend=True)) == extended
    assert "nothing is new" in capfd.readouterr().err
    assert encode(settings(place, "more", "grown")) == extended
    assert "images added since it was begun are left out" in capfd.readouterr().err
    assert times(place / "more") == before


def test_an_extension_has_the_settings_of_what_it_extends(
    place: Path, extended: Manifest[LatentsResult], tmp_path: Path
) -> None:
    folder, images = copy_of(place, "latents", "other-settings"), "grown"
    with pytest.raises(
        Conflict, match=r"can't be extended .* \(config.mirror: True -> False\): give what it"
    ):
        encode(settings(place, folder.name, images, extend=True, mirror=False))
    write_vae_of_seed(tmp_path / "vae", 1)
    with pytest.raises(Conflict, match=r"can't be extended .* \(inputs.vae: "):
        encode(settings(place, folder.name, images, extend=True, vae=str(tmp_path / "vae")))
    assert contents(folder) == contents(place / "latents")
    with pytest.raises(NotFound, match="holds no job of ray-dit"):
        encode(settings(place, "empty", images, extend=True))
    unfinish(folder)
    with pytest.raises(UserError, match="is unfinished: run ray-dit encode again"):
        encode(settings(place, folder.name, images, extend=True))


def write_vae_of_seed(folder: Path, seed: int) -> None:
    folder.mkdir()
    for name, data in VAE.create(VAE_SIZE, seed=seed).files().items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("extend", [True, False])
def test_a_killed_extension_goes_on_to_the_same_bytes(
    place: Path, extended: Manifest[LatentsResult], extend: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, images = (
        copy_of(place, "more", f"killed-{extend}"),
        copy_of(place, "grown", f"grown-more-{extend}"),
    )
    unfinish(folder, "00000", generation=1)
    shutil.copy(images / "left/00.png", images / "left/zz.png")  # for the next extension
    assert read_manifest(str(folder), LatentsResult).facts.rows == 20, "consumers see what is finished"
    assert any(problem.is_unfinished for problem in verify(open_store(str(folder))))
    assert "extension 1 is unfinished" in describe(str(folder))
    assert encode(settings(place, folder.name, images.name, extend=extend)) == extended
    assert "going on with extension 1 of 6 images" in capfd.readouterr().err
    assert contents(folder) == contents(place / "more")


def test_a_second_extension_and_a_lost_image_in_it(place: Path, extended: Manifest[LatentsResult]) -> None:
    folder, images = copy_of(place, "more", "twice"), copy_of(place, "grown", "grown-twice")
    for name in ("yy", "zz"):
        shutil.copy(images / "left/00.png", images / f"left/{name}.png")
    config = settings(place, folder.name, images.name, extend=True, max_bad=0.5)
    planned, job = begin(config, planned_images(config), files_sha256(VAE.load(config.vae).files()))
    assert (planned.plan.keys, job.generation) == (("left/yy.png", "left/zz.png"), 2)
    (images / "left/yy.png").unlink()
    manifest = encode(settings(place, folder.name, images.name, max_bad=0.5))
    assert (manifest.facts.rows, manifest.facts.bad, len(manifest.listings)) == (27, 1, 3)
    assert quarantined(folder, "quarantine-g02.parquet") == {"left/yy.png": "gone"}
    assert complaints(folder) == []


@pytest.mark.parametrize(
    ("damaged", "repair"),
    [
        (("plan.parquet",), False),
        (("plan-g01.parquet", "quarantine-g01.parquet"), False),
        (("latents/g01-00000.parquet", "latents/00000.parquet", "_markers-g01/00000.json"), True),
    ],
)
def test_damage_in_any_generation_is_found_and_repaired(
    place: Path, extended: Manifest[LatentsResult], damaged: tuple[str, ...], repair: bool
) -> None:
    folder = copy_of(place, "more", f"damaged-{Path(damaged[0]).stem}")
    before = contents(folder)
    for key in damaged:
        flip_bit(folder / key)
    assert sorted(complaint.split(": ")[0] for complaint in complaints(folder)) == sorted(
        str(folder / key) for key in damaged
    )
    if repair:
        (folder / "latents/00002.parquet").unlink()
    assert encode(settings(place, folder.name, "grown", repair=repair)) == extended
    assert contents(folder) == before
    assert complaints(folder) == []


def test_what_an_extension_will_make_is_told(place: Path, extended: Manifest[LatentsResult]) -> None:
    plan = plan_encode(settings(place, "latents", "grown", extend=True, batch_size=2), begun=0.0)
    assert plan.counts == {"images": 6, "shards": 1}
    assert plan.done == {"images": 0, "shards": 0}
    sizes = [(place / "grown" / key).stat().st_size for key in NEW]
    assert plan.bytes_in == sum(sizes)
    assert plan_encode(settings(place, "more", "grown"), begun=0.0).basis.startswith("finished")


def test_names_above_five_digits_are_read_in_their_order(tmp_path: Path) -> None:
    job = Job.open(open_store(str(tmp_path)), "encode", {"config": {}})
    for number in (99_998, 100_001, 99_999, 100_000):
        job.put(f"{number:05d}", f"latents/{number:05d}.parquet", b"%d" % number, latent_facts(number, 1))
    manifest = job.finish(latents_result(rows=4, train_rows=4), objects=job.markers(LatentShardFacts))
    listed = [marker.facts.shard for marker in manifest_objects(job.store, manifest, LatentShardFacts)]
    assert listed == [99_998, 99_999, 100_000, 100_001]
    assert [problem.what for problem in verify(job.store)] == []
