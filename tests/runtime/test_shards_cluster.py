"""The fan-out on several raylets: a node that comes late gets shards, a node that is killed loses nothing."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_dit.config import StageConfig
from ray_dit.runtime.session import ray_session
from tests.support.shard_makers import made, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHARDS = 60


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with room for one actor; its Ray is joined."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        with ray_session(StageConfig(output="unused", address=made.address)):
            yield made
    finally:
        made.shutdown()


def run_and(folder: Path, after: int, act: Callable[[], Any], **settings: Any) -> None:
    """Makes the shards in a thread, and does something once ``after`` of them are stored.

    Ray starts nodes in the main thread only.
    """
    import ray

    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(run, ray, folder, SHARDS, **settings)
        while len(list((folder / "out/_markers").glob("*"))) < after and not job.done():
            time.sleep(0.1)
        act()
        assert not job.done(), "it ended before anything happened to it"
        job.result()


def counts(folder: Path) -> list[int]:
    (end,) = (folder / "out/_runs").glob("*/end.json")
    return json.loads(end.read_text())["shards_by_actor"]


def test_a_node_is_added_and_another_killed_while_a_job_runs(cluster: Any, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    grows = {
        "actors": "2..9",
        "seconds": 0.1,
        "gate": (10, 3),
        "deadline": 120.0,
    }  # the rest waits for a third
    run_and(tmp_path, 6, lambda: cluster.add_node(num_cpus=1), **grows)
    assert len(counts(tmp_path)) == 3, "the node that came late started no actor"
    assert min(counts(tmp_path)) > 0, "the node that came late got none"
    assert made(tmp_path) == {f"{shard:05d}": f"shard {shard}".encode() for shard in range(SHARDS)}

    again = tmp_path / "again"
    again.mkdir()
    killed = partial(cluster.remove_node, second, allow_graceful=False)
    run_and(again, 9, killed, actors=3, seconds=0.5)
    assert made(again) == {f"{shard:05d}": f"shard {shard}".encode() for shard in range(SHARDS)}
