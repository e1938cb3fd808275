"""Other file systems as stores: what can only be read, and errors of any class."""

import http.server
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_dit.errors import NotFound, StoreFailure, UserError
from ray_dit.storage.open import open_store
from ray_dit.storage.other import FsspecStore


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_web_can_be_read_and_not_written(scheme: str):
    store = open_store(f"{scheme}://127.0.0.1:9/x")
    for write in (store.checked, lambda: store.put("a", b"x")):
        with pytest.raises(UserError, match="can be read but not written: give a path, s3://"):
            write()
    with pytest.raises(UserError, match="127.0.0.1:9"):
        store.get("a")


class Page(http.server.SimpleHTTPRequestHandler):
    """A folder on the web, one of whose images can't be had at the moment."""

    def send_head(self) -> Any:
        if self.path.endswith("busy.png"):
            return self.send_error(503)
        return super().send_head()

    def log_message(self, *_: object) -> None:
        pass


def test_what_the_web_does_not_give_now_is_not_absent(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"123")
    (tmp_path / "busy.png").write_bytes(b"123")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Page, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            store = open_store(f"http://127.0.0.1:{server.server_port}")
            assert {(info.key, info.size) for info in store.list()} == {("x.png", -1), ("busy.png", -1)}
            assert store.get_version("x.png")[1].size == 3
            assert store.head("nix.png") is None
            with pytest.raises(NotFound, match="nix.png does not exist"):
                store.get("nix.png")
            for read in (store.get, store.head, store.get_version):
                with pytest.raises(StoreFailure, match="busy.png could not be read .* 503"):
                    read("busy.png")
        finally:
            server.shutdown()


class Refusing:
    """A file system whose own client raises what it likes."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> object:
        def refuse(*_: object, **__: object) -> None:
            raise self.error

        return refuse


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("token"), "could not be read or written .KeyError"),
        (OSError("reset"), "check the address, the credentials and the network"),
        (PermissionError("no"), "is not permitted to this user: check the credentials"),
        (NotImplementedError("create"), "is on storage that cannot do this"),
    ],
)
def test_whatever_another_file_system_raises_is_a_sentence(error: Exception, sentence: str):
    class Store(FsspecStore):
        def _files(self, key: str | None = None) -> tuple[object, str]:
            return Refusing(error), f"x/{key}"

    store = Store("odd://x")
    for access in (
        lambda: store.get("a"),
        lambda: store.put("a", b""),
        lambda: list(store.list()),
        lambda: store.delete("a"),
    ):
        with pytest.raises(UserError, match=sentence):
            access()
