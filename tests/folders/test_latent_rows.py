"""Rows of latents: the same wherever they come from, whole or not at all, and never waiting for a copy."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ray_dit.errors import Damaged, NotFound, StoreFailure, UserError
from ray_dit.folders.latent_copies import locked
from ray_dit.folders.latents import LatentRows, cache_folder, open_latent_rows
from ray_dit.formats.latent_layout import index_facts
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.ledger.restore import overwrite
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.storage.local import LocalStore
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support.disks import NoDisk, SmallDisk
from tests.support.results import latent_facts
from tests.support.stores import s3_environment
from tests.support.stores import store as any_store

__all__ = ["any_store", "s3_environment"]

Markers = list[Marker[LatentShardFacts]]
SHAPE = (8, 2, 2)


def write(
    store: Store, sizes: list[int], *, mirror: bool = True, by_row: bool = True, first_number: int = 0
) -> Markers:
    """Shards of rows of which all moments are the row's number, as this version or an earlier one writes."""
    entries: Markers = []
    first = 1000 * first_number
    for number, rows in enumerate(sizes, start=first_number):
        ids = np.arange(first, first + rows)
        moments = np.broadcast_to(ids[:, None, None, None], (rows, *SHAPE)).astype(np.float16)
        keys = [f"a/{row}.png" for row in ids]
        shard = LatentShard(keys, ids % 3, ids % 2 == 0, moments, -moments if mirror else None)
        key, data = f"latents/{number}.parquet", latent_shard_bytes(shard, by_row=by_row)
        store.put(key, data)
        facts = latent_facts(number, rows, **(index_facts(data) if by_row else {}))
        entries.append(Marker(key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), facts=facts))
        first += rows
    return entries


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "latents"))


@dataclass
class Opened:
    """Opens rows and closes them all at the end of the test."""

    cache: Path
    rows: list[LatentRows] = field(default_factory=list[LatentRows])

    def __call__(self, store: Store, entries: Markers, *, most: int | None = None) -> LatentRows:
        self.rows.append(open_latent_rows(store, entries, "name", self.cache, most=most))
        return self.rows[-1]

    @property
    def folder(self) -> Path:
        return self.cache / "latents/name"

    def copies(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.isdigit())


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path / "cache")
    yield opened
    for rows in opened.rows:
        rows.close()


def until(condition: Callable[[], bool]) -> None:
    """Waits for what threads do; a minute is longer than anything takes here."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def all_rows(rows: LatentRows) -> list[float]:
    """One number of each row and view."""
    at = np.repeat(np.arange(len(rows.labels)), rows.views)
    return rows.take(at, np.tile(np.arange(rows.views), len(rows.labels)))[:, 0, 0, 0].tolist()


def wanted(count: int, mirror: bool = True) -> list[float]:
    return [value for row in range(count) for value in ((row, -row) if mirror else (row,))]


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("by_row", [True, False])
def test_rows_lie_in_shard_order(store: LocalStore, opened: Opened, mirror: bool, by_row: bool) -> None:
    entries = write(store, [3, 0, 4, 1], mirror=mirror, by_row=by_row)
    rows = opened(store, entries)
    assert rows.views == 1 + mirror
    assert all_rows(rows) == wanted(8, mirror)
    assert rows.labels.tolist() == [row % 3 for row in range(8)]
    assert rows.heldout.tolist() == [row % 2 == 0 for row in range(8)]
    taken = rows.take(np.array([7, 2]), np.array([0, mirror]))
    assert (taken.dtype, taken.shape) == (np.float16, (2, *SHAPE))
    until(lambda: rows.local == 4)
    assert all_rows(rows) == wanted(8, mirror)


def test_rows_are_the_same_whatever_is_local(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3, 4, 1])
    size = entries[0].bytes + entries[1].bytes
    for most, local in ((0, 0), (entries[0].bytes, 1), (size, 2), (None, 3)):
        rows = opened(store, entries, most=most)
        until(lambda rows=rows, local=local: rows.local == local)
        assert all_rows(rows) == wanted(8)
        assert rows.read == 2 * sum([3, 4, 1][local:])
        rows.close()
        assert len(opened.copies()) == local


def test_rows_come_from_any_kind_of_storage(any_store: Store, opened: Opened) -> None:
    entries = write(any_store, [3, 0, 4])
    rows = opened(any_store, entries, most=0)
    assert all_rows(rows) == wanted(7)
    rows.close()
    rows = opened(any_store, entries)
    until(lambda: rows.local == 3)
    assert all_rows(rows) == wanted(7)
    overwrite(any_store, entries[2].key, b"short")  # as ranges that lie outside of what is there now
    shutil.rmtree(opened.folder)
    with pytest.raises(Damaged, match="latents/2.parquet does not hold what was written there"):
        all_rows(rows)


def test_held_out_copies_are_held_out_by_their_keys(store: LocalStore, tmp_path: Path) -> None:
    for by_row in (True, False):
        entries = write(store.child(str(by_row)), [3, 4], by_row=by_row)
        there = store.child(str(by_row))
        rows = open_latent_rows(there, entries, str(by_row), tmp_path / "cache", {"a/1.png", "a/6.png"})
        assert np.flatnonzero(rows.heldout).tolist() == [0, 1, 2, 4, 6]
        rows.close()


def test_they_are_copied_once(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3, 2])
    rows = opened(store, entries)
    until(lambda: rows.local == 2)
    rows.close()
    for entry in entries:
        store.delete(entry.key)
    assert all_rows(opened(store, entries)) == wanted(5)


def test_rows_of_older_and_newer_shards_lie_side_by_side(store: LocalStore, opened: Opened) -> None:
    older, newer = write(store, [3, 2], by_row=False), write(store, [2], first_number=5)
    rows = opened(store, older + newer, most=sum(entry.bytes for entry in older))
    assert opened.copies()[:2] == ["000000", "000001"]
    assert all_rows(rows) == [*wanted(5), 5000, -5000, 5001, -5001] or all_rows(rows)[:10] == wanted(5)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "gone", "a folder"])
def test_a_copy_that_is_damaged_while_it_is_used_is_made_anew(
    store: LocalStore, opened: Opened, harm: str, by_row: bool, caplog: pytest.LogCaptureFixture
) -> None:
    entries = write(store, [3, 2], by_row=by_row)
    rows = opened(store, entries)
    until(lambda: rows.local == 2)
    path = opened.folder / "000001"
    good = path.read_bytes()
    if harm == "flipped":
        path.write_bytes(bytes(255 - byte for byte in good))
    elif harm == "truncated":
        path.write_bytes(good[:40])
    else:
        path.unlink()
        if harm == "a folder":
            path.mkdir()
    if harm == "a folder" and not by_row:
        with pytest.raises(UserError, match=r"can't be copied to .* \(Is a directory\): set RAY_DIT_CACHE"):
            all_rows(rows)
        return
    assert all_rows(rows) == wanted(5)
    assert "is damaged or gone" in caplog.text
    if harm != "a folder":
        until(lambda: rows.local == 2)
        assert path.read_bytes() == good


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("harm", ["longer", "truncated", "gone", "other bytes"])
def test_a_copy_that_was_damaged_between_two_openings_is_made_anew(
    store: LocalStore, opened: Opened, harm: str, by_row: bool
) -> None:
    entries = write(store, [3, 2], by_row=by_row)
    rows = opened(store, entries)
    until(lambda: rows.local == 2)
    rows.close()
    path = opened.folder / "000000"
    good = path.read_bytes()
    harms = {"longer": good + b"1", "truncated": good[:-1], "other bytes": bytes(len(good))}
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(harms[harm])
    rows = opened(store, entries)
    assert all_rows(rows) == wanted(5)
    until(lambda: rows.local == 2)
    assert path.read_bytes() == good


def test_a_copy_that_is_damaged_each_time_is_left(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3])
    rows = opened(store, entries)
    for _ in range(2):
        until(lambda: rows.local == 1)
        (opened.folder / "000000").write_bytes(b"")
        assert all_rows(rows) == wanted(3)
    time.sleep(0.1)
    assert rows.local == 0
    assert all_rows(rows) == wanted(3)


def test_a_folder_of_copies_that_is_deleted_while_it_is_used_is_done_without(
    store: LocalStore, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    entries = write(store, [3] * 9)
    rows = opened(store, entries)
    until(lambda: rows.local == 9)
    shutil.rmtree(opened.folder)
    for _ in range(3):
        assert all_rows(rows) == wanted(27)
    assert caplog.text.count("is damaged or gone") == 5


@pytest.mark.parametrize("by_row", [True, False])
def test_an_index_that_is_damaged_or_gone_is_made_anew(
    store: LocalStore, opened: Opened, by_row: bool
) -> None:
    entries = write(store, [3, 2], by_row=by_row)
    first = opened(store, entries)
    until(lambda: first.local == 2)
    path = opened.folder / "index.npz"
    good = path.read_bytes()
    for place in [*range(0, len(good), 97), None]:
        if place is None:
            path.unlink()
        else:
            flip(path, place)
        rows = opened(store, entries)
        assert rows.labels.tolist() == first.labels.tolist()
        assert rows.heldout.tolist() == first.heldout.tolist()
        assert all_rows(rows) == wanted(5)
        rows.close()


def test_what_an_earlier_version_copied_is_removed(store: LocalStore, opened: Opened) -> None:
    opened.folder.mkdir(parents=True)
    for name in ("moments.npy", "rows.npz"):
        (opened.folder / name).write_bytes(b"of before")
    opened(store, write(store, [3]))
    assert not {"moments.npy", "rows.npz"} & {path.name for path in opened.folder.iterdir()}


def change(store: LocalStore, key: str, place: int) -> None:
    path = store.local_path(key)
    assert path is not None
    flip(path, place)


def test_a_row_that_is_damaged_in_storage_names_the_object(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3, 2])
    rows = opened(store, entries, most=0)
    change(store, entries[1].key, entries[1].facts.index_spans[-1][0] - 1)  # of the last row's mirror image
    assert rows.take(np.arange(3), np.zeros(3, int))[:, 0, 0, 0].tolist() == [0, 1, 2]
    with pytest.raises(Damaged, match=r"latents/1.parquet does not hold what was written there: .*verify"):
        all_rows(rows)


def test_a_shard_that_is_replaced_by_another_is_refused(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3, 2])
    rows = opened(store, entries, most=0)
    other = store.get(entries[0].key)
    store.delete(entries[1].key)
    store.put(entries[1].key, other)  # a whole shard, but not this one
    with pytest.raises(Damaged, match="latents/1.parquet does not hold what was written there"):
        all_rows(rows)
    (opened.folder / "index.npz").unlink()
    with pytest.raises(Damaged, match="latents/1.parquet does not hold what was written there"):
        opened(store, entries)


@pytest.mark.parametrize("by_row", [True, False])
def test_any_bit_that_changed_in_storage_is_found_before_a_row_is_trained_on(
    store: LocalStore, opened: Opened, by_row: bool
) -> None:
    entries = write(store, [3], by_row=by_row)
    for place in range(0, entries[0].bytes, 41):
        change(store, entries[0].key, place)
        opened.cache = opened.cache.with_name(f"cache-{place}")
        try:
            taken = all_rows(opened(store, entries))
        except Damaged:
            continue
        finally:
            change(store, entries[0].key, place)
        assert taken == wanted(3)  # what changed is no row and no part of the index: levels of a page


def test_an_opening_that_failed_leaves_no_index(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3, 2])
    data = store.get(entries[1].key)
    store.delete(entries[1].key)
    with pytest.raises(NotFound):
        opened(store, entries)
    assert not (opened.folder / "index.npz").exists()
    store.put(entries[1].key, data)
    assert all_rows(opened(store, entries)) == wanted(5)


@dataclass(frozen=True)
class Slow(LocalStore):
    """Storage that gives no shard whole until the gate opens, and then perhaps an error."""

    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])
    error: list[Exception] = field(default_factory=list[Exception])

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.asked.append((key, start, length))
        data = super().get_range(key, start, length)
        if start == 0 and len(data) == len(self.get(key)):
            self.gate.wait(60)
            if self.error:
                raise self.error[0]
        return data


def test_rows_do_not_wait_for_copies(store: LocalStore, opened: Opened) -> None:
    slow = Slow(store.uri)
    entries = write(slow, [30, 30])
    rows = opened(slow, entries)
    assert all_rows(rows) == wanted(60)
    assert rows.local == 0
    slow.gate.set()
    until(lambda: rows.local == 2)


def test_what_storage_refuses_the_copying_is_raised_where_rows_are_taken(
    store: LocalStore, opened: Opened
) -> None:
    slow = Slow(store.uri, error=[StoreFailure("it is silent")])
    rows = opened(slow, write(slow, [30, 30]))
    assert all_rows(rows) == wanted(60)
    slow.gate.set()

    def is_raised() -> bool:
        try:
            all_rows(rows)
        except StoreFailure as error:
            return str(error) == "it is silent"
        return False

    until(is_raised)


@dataclass(frozen=True)
class Flipping(LocalStore):
    """Storage from which some answers, counted by their lengths, come with another last byte."""

    flips: dict[int, int] = field(default_factory=dict[int, int])

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = super().get_range(key, start, length)
        if self.flips.get(length, 0) > 0:
            self.flips[length] -= 1
            return data[:-1] + bytes([data[-1] ^ 1])
        return data


def test_a_byte_that_changed_on_its_way_is_read_again(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3])
    spans, whole, row = entries[0].facts.index_spans, entries[0].bytes, 2 * 8 * 2 * 2
    far = Flipping(store.uri, flips={row: 1, whole: 1, spans[0][1] - spans[0][0]: 1})
    rows = opened(far, entries, most=0)
    assert all_rows(rows) == wanted(3)
    rows.close()
    rows = opened(far, entries)
    until(lambda: rows.local == 1)
    assert set(far.flips.values()) == {0}
    assert (opened.folder / "000000").read_bytes() == store.get(entries[0].key)
    assert rows.read == 0
    assert all_rows(rows) == wanted(3)


def test_a_shard_that_is_never_what_was_written_is_not_kept(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3])
    rows = opened(Flipping(store.uri, flips={entries[0].bytes: 2}), entries)

    def is_raised() -> bool:
        try:
            all_rows(rows)
        except Damaged as error:
            return "latents/0.parquet does not hold what was written there" in str(error)
        return False

    until(is_raised)
    assert opened.copies() == []


def test_opening_reads_a_small_part_of_what_there_is(store: LocalStore, opened: Opened) -> None:
    slow = Slow(store.uri)
    entries = write(slow, [400] * 3)
    opened(slow, entries, most=0)
    assert len(slow.asked) <= 2 * len(entries)
    assert len({key for key, _, _ in slow.asked}) == len(entries)


def test_closing_ends_the_threads_though_not_all_is_copied(store: LocalStore, opened: Opened) -> None:
    slow = Slow(store.uri)
    entries = write(slow, [30] * 20)
    rows = opened(slow, entries)
    until(lambda: any(size == entries[0].bytes for _, _, size in slow.asked))
    rows.close()
    slow.gate.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "copy latents"])
    assert len(opened.copies()) < len(entries)
    assert not list(opened.folder.glob(".part-*"))


def test_rows_that_nobody_uses_any_more_are_not_copied(store: LocalStore, opened: Opened) -> None:
    slow = Slow(store.uri)
    rows = open_latent_rows(slow, write(slow, [30] * 20), "name", opened.cache)
    del rows
    slow.gate.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "copy latents"])
    assert len(opened.copies()) < 20


def test_of_several_one_copies_and_the_others_find_it(store: LocalStore, opened: Opened) -> None:
    slow = Slow(store.uri)
    entries = write(slow, [30] * 6)
    slow.gate.set()
    several = [opened(slow, entries) for _ in range(4)]
    until(lambda: all(rows.local == 6 for rows in several))
    assert all(all_rows(rows) == wanted(180) for rows in several)
    sizes = {entry.key: entry.bytes for entry in entries}
    whole = [key for key, _, length in slow.asked if length == sizes[key]]
    assert sorted(whole) == sorted(entry.key for entry in entries)


def test_where_the_one_that_copies_is_gone_another_copies(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3, 2])
    opened.folder.mkdir(parents=True)
    with locked(opened.folder / "copying.lock", wait=False) as mine:
        assert mine
        rows = opened(store, entries)
        assert all_rows(rows) == wanted(5)
        assert rows.local == 0
    until(lambda: rows.local == 2)


COPIER = """
import pathlib, sys, time
from ray_dit.folders.latents import open_latent_rows
from ray_dit.ledger.restore import overwrite
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.storage.local import LocalStore

class Stuck(LocalStore):
    def get_range(self, key, start, length):
        while start == 0 and length > 5000 and key != "latents/0.parquet":
            time.sleep(1)
        return super().get_range(key, start, length)

entries = [Marker[LatentShardFacts].model_validate_json(line) for line in sys.stdin]
rows = open_latent_rows(Stuck(sys.argv[1]), entries, "name", pathlib.Path(sys.argv[2]))
time.sleep(600)
"""


def test_a_process_sees_what_another_copies_and_goes_on_when_that_is_killed(
    store: LocalStore, opened: Opened
) -> None:
    entries = write(store, [30] * 6)
    command = [sys.executable, "-c", COPIER, store.uri, str(opened.cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as copier:
        try:
            assert copier.stdin is not None
            copier.stdin.write("".join(f"{entry.model_dump_json()}\n" for entry in entries))
            copier.stdin.close()
            until(lambda: opened.folder.exists() and opened.copies() == ["000000"])
            until(lambda: len(list(opened.folder.glob(".part-*"))) >= 3)
            rows = opened(store, entries)
            assert all_rows(rows) == wanted(180)
            assert rows.read == 300
            assert opened.copies() == ["000000"]
        finally:
            copier.kill()
    until(lambda: rows.local == 6)
    assert all_rows(rows) == wanted(180)
    assert rows.read == 300


def test_what_a_killed_process_left_is_removed_after_a_while(store: LocalStore, opened: Opened) -> None:
    opened.folder.mkdir(parents=True)
    left, new = opened.folder / ".part-left", opened.folder / ".part-new"
    for path in (left, new):
        path.write_bytes(b"half of it")
    os.utime(left, (0, 0))
    rows = opened(store, write(store, [3]))
    until(lambda: rows.local == 1)
    assert (left.exists(), new.exists()) == (False, True)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("RAY_DIT_CACHE", raising=False)
    assert cache_folder() == Path("/somewhere/ray-dit")
    monkeypatch.setenv("RAY_DIT_CACHE", "/else")
    assert cache_folder() == Path("/else")


def test_no_permission_is_said_at_once_with_what_to_set(store: LocalStore, tmp_path: Path) -> None:
    entries = write(store, [3, 2])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"can't be copied to .*file \(Not a directory\): set RAY_DIT_CACHE"):
        open_latent_rows(store, entries, "name", tmp_path / "file")


def test_older_shards_that_may_not_be_copied_whole_are_refused(store: LocalStore, opened: Opened) -> None:
    entries = write(store, [3, 2], by_row=False)
    with pytest.raises(UserError, match="by an earlier version, .* give a larger --cache-size, or encode"):
        opened(store, entries, most=entries[0].bytes)


@pytest.mark.parametrize("by_row", [True, False])
def test_no_space_even_for_the_index_is_said_at_once(tmp_path: Path, by_row: bool) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [1500, 500], by_row=by_row)
    try:
        with SmallDisk(tmp_path / "disk", pages=8) as disk:
            with pytest.raises(UserError, match=r"disk \(No space left on device\): set RAY_DIT_CACHE to a"):
                open_latent_rows(store, entries, "name", disk.folder)
            disk.enlarge()
            rows = open_latent_rows(store, entries, "name", disk.folder)
            until(lambda: rows.local == 2)
            rows.close()
    except NoDisk as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("most", [None, 1 << 30])
def test_a_disk_that_is_full_ends_the_copying_and_not_the_training(
    tmp_path: Path, most: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """By default nearly full is enough; where a size is given the disk itself must refuse."""
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [500] * 4, mirror=False)
    try:
        with SmallDisk(tmp_path / "disk", pages=40) as disk:
            rows = open_latent_rows(store, entries, "name", disk.folder, most=most)
            until(lambda: "which takes no more" in caplog.text)
            assert 0 < rows.local < 4
            assert all_rows(rows) == wanted(2000, mirror=False)
            assert caplog.text.count("which takes no more") == 1
            assert not list(disk.folder.rglob(".part-*"))
            rows.close()
    except NoDisk as error:
        pytest.skip(str(error))
