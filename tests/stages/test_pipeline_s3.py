"""The whole pipeline with all its outputs on a real S3 server ends in the bytes it has on disk."""

from pathlib import Path

import pytest

from jobs.demo_s3 import compare, digests
from ray_dit.errors import UserError
from ray_dit.storage.open import open_store
from tests.support import pipeline, seaweed, tiny

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_on_s3_and_on_disk_every_object_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweed.environment(seaweed.endpoint()).items():
        monkeypatch.setenv(name, value)
    disk, uri = tmp_path / "disk", seaweed.fresh_uri("pipeline")
    pipeline.write_images(disk / "images")
    store = open_store(uri)
    for path in sorted((disk / "images").rglob("*.png")):
        store.put(str(path.relative_to(disk)), path.read_bytes())
    for folder, home in ((str(disk), "home"), (uri, "home-s3")):  # caches apart: each reads its own latents
        (tmp_path / home).mkdir()
        pipeline.finish(folder, ",".join(pipeline.STAGES), tmp_path / home)
    on_s3 = digests(store)
    assert on_s3 == tiny.contents(disk)
    assert {key.split("/")[0] for key in on_s3} >= {"vae", "latents", "run", "model", "dataset", "evaluation"}
    assert not [key for key in on_s3 if "ray_train" in key]
    assert (
        compare(store, disk)
        == f"equal: all {len(on_s3)} objects at {uri} have the sha256 of their files in {disk}"
    )
    (disk / "evaluation/metrics.json").write_bytes(b"{}")
    with pytest.raises(UserError, match="1 objects differ .*evaluation/metrics.json"):
        compare(store, disk)
