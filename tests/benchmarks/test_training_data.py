"""What the benchmark of training's data rests on, without a clock: few bytes first, many requests at once."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.training_data import ROWS, FarStore, Link, Setting, make_shard, markers_of, train
from ray_dit.folders.latents import open_latent_rows

AT_ONCE = 24


def test_what_is_read_before_the_first_step_is_a_hundredth_of_the_folder(tmp_path: Path) -> None:
    """Of shards as encode makes them, whatever their number: opening a folder and its first batch."""
    data, link = make_shard(ROWS), Link(0, 1e12)
    store = FarStore("/far", data=data, link=link)
    rows = open_latent_rows(store, markers_of(data, 40, ROWS), "far", tmp_path, most=0)
    assert link.given / (40 * len(data)) < 0.01
    before = link.given
    rows.take(np.arange(256) * 100, np.zeros(256, np.int64))
    assert link.given - before == 256 * 2 * 8 * 32 * 32
    rows.close()


@dataclass(frozen=True)
class Together(FarStore):
    """Answers requests of rows when so many wait for an answer."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(AT_ONCE, timeout=60))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        found = super().get_range(key, start, length)
        if length == 2 * 8 * 2 * 2:
            self.barrier.wait()
        return found


def test_rows_of_a_batch_are_asked_for_at_once(tmp_path: Path) -> None:
    data = make_shard(100, (8, 2, 2))
    store = Together("/far", data=data, link=Link(0, 1e12))
    rows = open_latent_rows(store, markers_of(data, 3, 100), "far", tmp_path, most=0)
    taken = rows.take(np.arange(2 * AT_ONCE), np.ones(2 * AT_ONCE, np.int64))
    assert taken.shape == (2 * AT_ONCE, 8, 2, 2)
    rows.close()


def test_the_simulation_trains_until_all_is_local(tmp_path: Path) -> None:
    data = make_shard(100, (8, 2, 2))
    setting = Setting(6, 1e9, batch_size=8, step_seconds=0.001, latency=0)
    found = train(setting, data, 100, tmp_path, lambda rows, steps: rows.local == 6)
    assert found["steps"] >= 1
    assert 0 < found["given_at_first_step"]
    assert {"waited", "seconds", "open_seconds", "rows_from_storage"} <= found.keys()
