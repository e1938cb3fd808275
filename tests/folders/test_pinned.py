"""Objects are read as they were planned, or said to be gone or changed; other errors stay what they are."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ray_dit.errors import Conflict, NotFound, StoreFailure
from ray_dit.folders.pinned import NotAsPlanned, Pinned
from ray_dit.formats.image_format import version_of
from ray_dit.storage.local import LocalStore
from ray_dit.storage.store import ObjectInfo, Store

DATA = bytes(range(200))
READS: dict[str, Callable[[Pinned], bytes]] = {
    "get": lambda source: source.get("a/x"),
    "get_range": lambda source: source.get_range("a/x", 0, len(DATA)),
    "open_file": lambda source: source.open_file("a/x").read(),
}


def planned(store: Store) -> Pinned:
    """A source of what is there now, as a plan of it would have it."""
    (info,) = store.list("a/")
    return Pinned(store, info.size, version_of(store, info))


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_is_as_planned_is_read(store: Store, read: Callable[[Pinned], bytes]) -> None:
    store.put("a/x", DATA)
    assert read(planned(store)) == DATA


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_is_not_there_is_gone_and_what_has_another_size_is_changed(
    store: Store, read: Callable[[Pinned], bytes]
) -> None:
    store.put("a/x", DATA)
    source = planned(store)
    for there in (b"", DATA[:-1], DATA + b"more"):
        store.delete("a/x")
        store.put("a/x", there)
        with pytest.raises(NotAsPlanned) as changed:
            read(source)
        assert (changed.value.key, changed.value.reason) == ("a/x", "changed")
    store.delete("a/x")
    for pinned in (source, Pinned(store)):
        with pytest.raises(NotAsPlanned) as gone:
            read(pinned)
        assert (gone.value.key, gone.value.reason) == ("a/x", "gone")


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_where_storage_tells_versions_the_same_size_is_not_enough(
    store: Store, read: Callable[[Pinned], bytes]
) -> None:
    store.put("a/x", DATA)
    source = planned(store)
    assert bool(source.version) != isinstance(store, LocalStore)
    store.delete("a/x")
    store.put("a/x", DATA[::-1])
    if not source.version:  # a copy on a disk has another one: it stands for nothing
        assert read(source) == DATA[::-1]
        return
    with pytest.raises(NotAsPlanned) as changed:
        read(source)
    assert changed.value.reason == "changed"
    assert read(Pinned(store, len(DATA))) == DATA[::-1], "a plan of before knows no versions"
    assert read(Pinned(store)) == DATA[::-1]


@dataclass(frozen=True)
class OddStore(LocalStore):
    """One that raises ``errors`` in turn before it reads."""

    errors: list[Exception] = field(default_factory=list[Exception])
    asked: list[str] = field(default_factory=list[str])

    def get_version(self, key: str, span: tuple[int, int] | None = None) -> tuple[bytes, ObjectInfo]:
        self.asked.append("get_version")
        if self.errors:
            raise self.errors.pop(0)
        return super().get_version(key, span)

    def head(self, key: str) -> ObjectInfo | None:
        self.asked.append("head")
        return super().head(key)


def test_an_object_is_looked_at_by_the_request_that_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = OddStore(str(tmp_path_factory.mktemp("odd")))
    store.put("a/x", DATA)
    source = planned(store)
    store.asked.clear()
    assert source.get("a/x") == DATA
    assert source.get_range("a/x", 5, 3) == DATA[5:8]
    assert source.get_range("a/x", 5, 0) == b""
    assert store.asked == ["get_version"] * 2
    assert source.local_path("a/x") is None, "nobody looks at the version of what is mapped"


def test_what_cannot_be_read_now_is_not_gone(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = OddStore(str(tmp_path_factory.mktemp("odd")), errors=[StoreFailure("no reply")])
    store.put("a/x", DATA)
    with pytest.raises(StoreFailure, match="no reply"):
        planned(store).get("a/x")
    assert planned(store).get("a/x") == DATA


def test_what_was_replaced_while_it_was_read_is_read_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = OddStore(str(tmp_path_factory.mktemp("odd")), errors=[Conflict("replaced")])
    store.put("a/x", DATA)
    assert planned(store).get("a/x") == DATA
    store.errors.extend([Conflict("replaced"), NotFound("and then removed")])
    with pytest.raises(NotAsPlanned, match="a/x is gone"):
        planned(store).get("a/x")
