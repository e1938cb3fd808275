"""Objects as local files: a folder's own, copies of all others, gone afterwards."""

from pathlib import Path

import pytest

from ray_dit.errors import NotFound
from ray_dit.storage.local_file import local_file, local_folder
from ray_dit.storage.store import Store


def test_an_object_is_a_file_while_the_context_lasts(store: Store) -> None:
    store.put("deep/a.bin", b"abc" * 1000)
    with local_file(store, "deep/a.bin") as path:
        assert path.read_bytes() == b"abc" * 1000
    own = store.local_path("deep/a.bin")
    assert path.exists() if own == path else not path.exists()
    assert (own is None) == (path != own)


def test_several_objects_lie_in_one_folder(store: Store) -> None:
    for key in ("config.json", "part/weights", "unasked"):
        store.put(key, key.encode())
    with local_folder(store, ["config.json", "part/weights"]) as folder:
        assert (folder / "config.json").read_bytes() == b"config.json"
        assert (folder / "part/weights").read_bytes() == b"part/weights"
        assert (folder / "unasked").exists() == (store.local_path("unasked") is not None)


def test_an_absent_object_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="does not exist"), local_file(store, "gone"):
        pytest.fail("there is no such object")


def test_a_local_file_is_not_copied(tmp_path: Path) -> None:
    from ray_dit.storage.local import LocalStore

    (tmp_path / "a").write_bytes(b"x")
    with local_file(LocalStore(str(tmp_path)), "a") as path:
        assert path == tmp_path / "a"
