"""A folder as a store: what is no file, and symbolic links that lead in circles."""

import os
import socket
from pathlib import Path

import pytest

from ray_dit.errors import Conflict, UserError
from ray_dit.storage.open import open_store


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_listed_and_never_opened(tmp_path: Path):
    """A FIFO without a writer would be waited for without end."""
    store = open_store(str(tmp_path))
    store.put("cat/0.png", b"x")
    os.mkfifo(tmp_path / "cat/1.png")
    (tmp_path / "cat/2.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "cat/3.png"))
    assert [info.key for info in store.list()] == ["cat/0.png"]
    for key in ("cat/1.png", "cat/2.png", "cat/3.png"):
        assert store.head(key) is None
        for read in (store.get, store.sha256, store.open_file, lambda key: store.get_range(key, 0, 1)):
            with pytest.raises(UserError, match=f"{key} is a FIFO, socket or device, not a file: remove"):
                read(key)
        with pytest.raises(Conflict, match="no file"):
            store.put(key, b"x")


def test_links_that_lead_in_circles_are_said_and_others_followed(tmp_path: Path):
    store = open_store(str(tmp_path / "in"))
    store.put("a/x", b"x")
    (tmp_path / "in/b").symlink_to("a")
    (tmp_path / "in/gone").symlink_to("nowhere")
    assert [info.key for info in store.list()] == ["a/x", "b/x"]
    (tmp_path / "in/a/up").symlink_to("../..")
    with pytest.raises(UserError, match="is a symbolic link to a folder it lies in: remove the link"):
        list(store.list())
    (tmp_path / "in/loop").symlink_to("loop")
    for access in (store.get, store.head, lambda key: list(store.child(key).list())):
        with pytest.raises(UserError, match="in/loop/? leads through symbolic links that end nowhere"):
            access("loop")
