"""Latents on the local disk: all rows in shard order, copied once, whole or not there."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ray_dit.errors import Damaged, NotFound, UserError
from ray_dit.folders.latents import DamagedCopy, cache_folder, open_latent_rows
from ray_dit.formats.latents import LatentShard, latent_shard_bytes
from ray_dit.ledger.results import Marker
from ray_dit.results import LatentShardFacts
from ray_dit.storage.open import open_store
from ray_dit.storage.store import Store
from tests.support.disks import NoDisk, SmallDisk
from tests.support.results import latent_facts


def write(store: Store, sizes: list[int], *, mirror: bool) -> list[Marker[LatentShardFacts]]:
    entries: list[Marker[LatentShardFacts]] = []
    first = 0
    for number, rows in enumerate(sizes):
        ids = np.arange(first, first + rows)
        moments = np.broadcast_to(ids[:, None, None, None], (rows, 8, 2, 2)).astype(np.float16)
        keys = [f"a/{row}.png" for row in ids]
        shard = LatentShard(keys, ids % 3, ids % 2 == 0, moments, -moments if mirror else None)
        key, data = f"latents/{number}.parquet", latent_shard_bytes(shard)
        store.put(key, data)
        facts = latent_facts(number, rows)
        entries.append(Marker(key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), facts=facts))
        first += rows
    return entries


@pytest.mark.parametrize("mirror", [True, False])
def test_rows_lie_in_shard_order(tmp_path: Path, mirror: bool) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [3, 4, 1], mirror=mirror)
    rows = open_latent_rows(store, entries, "name", tmp_path / "cache")
    assert rows.moments.shape == (8, 1 + mirror, 8, 2, 2)
    assert rows.moments.dtype == np.float16
    assert rows.moments[:, 0, 0, 0, 0].tolist() == list(range(8))
    assert not mirror or rows.moments[:, 1, 0, 0, 0].tolist() == [-row for row in range(8)]
    assert rows.labels.tolist() == [row % 3 for row in range(8)]
    assert rows.heldout.tolist() == [row % 2 == 0 for row in range(8)]


def test_they_are_copied_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [3, 2], mirror=False)
    first = open_latent_rows(store, entries, "name", tmp_path / "cache")
    for entry in entries:
        store.delete(entry.key)
    again = open_latent_rows(store, entries, "name", tmp_path / "cache")
    np.testing.assert_array_equal(again.moments, first.moments)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_the_copy_is_found_when_its_row_is_used(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [3, 2], mirror=True)
    rows = open_latent_rows(store, entries, "name", tmp_path / "cache")
    at, views = np.arange(5), np.array([0, 1, 0, 1, 0])
    good = rows.take(at, views)
    np.testing.assert_array_equal(good, rows.moments[at, views])
    flip(tmp_path / "cache/latents/name/moments.npy", -1)  # of the last row's mirror image
    np.testing.assert_array_equal(rows.take(at, views), good)
    with pytest.raises(DamagedCopy, match="made anew"):
        rows.take(np.array([4]), np.array([1]))
    again = open_latent_rows(store, entries, "name", tmp_path / "cache")
    assert again.take(np.array([4]), np.array([1]))[0, 0, 0, 0] == -4


def test_a_copy_that_is_damaged_or_of_before_is_made_anew(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [3, 2], mirror=False)
    good = open_latent_rows(store, entries, "name", tmp_path / "cache")
    copy = tmp_path / "cache/latents/name"
    for place in range(0, (copy / "rows.npz").stat().st_size, 7):
        flip(copy / "rows.npz", place)
        again = open_latent_rows(store, entries, "name", tmp_path / "cache")
        assert again.labels.tolist() == good.labels.tolist()
        assert again.heldout.tolist() == good.heldout.tolist()
        assert again.checks.tolist() == good.checks.tolist()
    (copy / "rows.npz").unlink()
    assert (
        open_latent_rows(store, entries, "name", tmp_path / "cache").labels.tolist() == good.labels.tolist()
    )


def test_a_copy_that_failed_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [3, 2], mirror=False)
    store.delete(entries[1].key)
    with pytest.raises(NotFound):
        open_latent_rows(store, entries, "name", tmp_path / "cache")
    assert list((tmp_path / "cache/latents").iterdir()) == []


def test_a_shard_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [3, 2], mirror=False)
    store.delete(entries[1].key)
    store.put(entries[1].key, store.get(entries[0].key))  # a whole shard, but another one
    with pytest.raises(Damaged, match="latents/1.parquet does not hold what was written there"):
        open_latent_rows(store, entries, "name", tmp_path / "cache")
    assert list((tmp_path / "cache/latents").iterdir()) == []


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("RAY_DIT_CACHE", raising=False)
    assert cache_folder() == Path("/somewhere/ray-dit")
    monkeypatch.setenv("RAY_DIT_CACHE", "/else")
    assert cache_folder() == Path("/else")


def test_no_permission_is_said_at_once_with_what_to_set(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [3, 2], mirror=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"can't be copied to .*file \(Not a directory\): set RAY_DIT_CACHE"):
        open_latent_rows(store, entries, "name", tmp_path / "file")


def test_no_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """Writing through a map to a full disk would end the process."""
    store = open_store(str(tmp_path / "latents"))
    entries = write(store, [1500, 500], mirror=False)
    try:
        with SmallDisk(tmp_path / "disk", pages=8) as disk:
            with pytest.raises(UserError, match=r"disk \(No space left on device\): set RAY_DIT_CACHE to a"):
                open_latent_rows(store, entries, "name", disk.folder)
            assert not [path for path in disk.folder.rglob("*") if path.is_file()]
            disk.enlarge()
            assert len(open_latent_rows(store, entries, "name", disk.folder).labels) == 2000
    except NoDisk as error:
        pytest.skip(str(error))
