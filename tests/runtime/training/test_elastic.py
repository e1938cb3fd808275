"""A range of workers on a cluster that grows and shrinks while a training is under way."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ray_dit.config import StageConfig
from ray_dit.folders.checkpoints import checkpoint_steps
from ray_dit.ledger.job import Job
from ray_dit.runtime.session import ray_session
from ray_dit.runtime.training.launch import Intervals, run_training
from ray_dit.storage.open import open_store
from tests.runtime.training import regression
from tests.runtime.training.regression import CONFIG, Ending, read_step, run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GROWS, SHRINKS, STEPS = 8, 16, 24
SECONDS = 240.0
ELASTIC = CONFIG.model_copy(update={"steps": STEPS, "num_workers": "1..2", "batch_size": 4})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One node with room for one worker."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Ray looks at the cluster every 20 s, and tries once with as many workers as before
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@dataclass
class Waiting(Ending):
    """Waits in the step from which on there shall be two workers, and in that from which on one again."""

    folder: Path = Path()

    def setup(self, device: torch.device) -> nn.Module:
        self.workers = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if self.workers == 2:
            (self.folder / "grown").touch()
        return super().setup(device)

    def batch(self, positions: np.ndarray) -> torch.Tensor:
        step = int(positions[0]) // ELASTIC.batch_size
        while step >= SHRINKS and self.workers == 2:
            time.sleep(0.05)
        while step >= GROWS and not (self.folder / "grown").exists():
            time.sleep(0.05)
        return super().batch(positions)


def train(address: str, folder: Path) -> None:
    """The driver, a process of its own: nodes come and go in the test's."""
    with ray_session(StageConfig(output="unused", address=address)) as ray:
        for module in (regression, sys.modules[__name__]):
            ray.cloudpickle.register_pickle_by_value(module)
        job = Job.open(open_store(str(folder / "run")), "train", {"test": True})
        run_training(ray, ELASTIC, job, Waiting(folder=folder), "train", intervals=Intervals(resize=1.0))


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def test_it_grows_and_shrinks_with_the_cluster(cluster: Any, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    driver = multiprocessing.get_context("spawn").Process(target=train, args=(cluster.address, tmp_path))
    driver.start()
    try:
        wait_for(lambda: GROWS in checkpoint_steps(store))
        node = cluster.add_node(num_cpus=1)
        wait_for(lambda: SHRINKS in checkpoint_steps(store))
        cluster.remove_node(node, allow_graceful=False)
        driver.join(SECONDS)
        assert driver.exitcode == 0
    finally:
        driver.kill()
    tensors, facts = read_step(store, STEPS)
    assert [(each.first, each.workers) for each in facts.history] == [(0, 1), (GROWS, 2), (SHRINKS, 1)]
    alone = run(tmp_path / "alone", ELASTIC).log
    assert alone is not None
    np.testing.assert_allclose(tensors["log"].numpy()[:, :2], alone[:, :2], rtol=1e-5)
