"""Which place a URI means, which one it lies in, and URIs that mean none."""

import os
from pathlib import Path

import pytest

from ray_dit.errors import UserError
from ray_dit.storage.local import LocalStore
from ray_dit.storage.open import is_inside, open_store


def test_whether_a_place_lies_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in/a")
    for inner in ("in", "in/", "in/a/new/er", "./in/../in", "link/b", f"file://{tmp_path}/in/x"):
        assert is_inside(inner, "in"), inner
    for other in ("inn", "out", "in/..", "s3://in", "link/../.."):
        assert not is_inside(other, "in"), other
    assert is_inside("s3a://bucket/a/", "s3://bucket/a")
    assert is_inside("s3://bucket/a", "s3://bucket")
    assert not is_inside("s3://bucket/ab", "s3://bucket/a")


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("s3:/x", "give s3://x"),
        ("S3:x/y", "give s3://x/y"),
        ("s3//x", "give s3://x"),
        ("gs:/x", "give gs://x"),
        ("file:/x", "give file:///x"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
    ],
)
def test_a_misspelt_uri_is_no_folder(uri: str, meant: str):
    with pytest.raises(UserError, match=meant):
        open_store(uri)


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("./s3:/x") == LocalStore(f"{tmp_path}/s3:/x")
    (tmp_path / "s3:").mkdir()
    for name in ("s3:", "run:1/x", "a//b", "https-images"):
        assert open_store(name) == LocalStore(os.path.abspath(name))
    assert open_store("S3A://bucket/x").uri == "s3://bucket/x"
