"""One worker without Ray: a resumed run ends in the bits of one that was never disturbed."""

from pathlib import Path

import torch

from ray_dit.folders.checkpoints import checkpoint_key
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.board import Progress
from ray_dit.runtime.training.checkpointer import JobCheckpointer
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.state import TrainingState
from ray_dit.runtime.training.worker import resume
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CPU, Regression, at_half, run, same


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    at_half(tmp_path / "half")
    resumed = run(tmp_path / "half")
    assert resumed.seen == list(range(4 * 4, 8 * 4))
    assert same(whole, resumed)
    for key in (checkpoint_key(4), checkpoint_key(8), "picture-8"):
        assert open_store(str(tmp_path / "whole")).get(key) == open_store(str(tmp_path / "half")).get(key)


def test_a_finished_run_only_finishes_again(tmp_path: Path) -> None:
    whole = run(tmp_path)
    again = run(tmp_path)
    assert again.seen == []
    assert same(whole, again)


def test_all_workers_resume_from_the_checkpoint_that_rank_0_names(tmp_path: Path) -> None:
    class Told(Alone):
        def agree(self, value: int, device: torch.device) -> int:
            assert value == 0  # not what this worker finds
            return 4

    run(tmp_path)
    checkpointer = JobCheckpointer(Job.open(open_store(str(tmp_path)), "train", {"test": True}), 4, 8)
    task = Regression()
    state = TrainingState.initial(task.setup(CPU, False), task.optimizer, task.ema_decay)
    resume(state, checkpointer, Told(rank=1, world_size=2))
    assert checkpointer.steps()[0] == 8
    assert state.step == 4


def test_the_first_worker_shows_where_it_begins_and_ends(tmp_path: Path) -> None:
    shown: list[Progress] = []
    at_half(tmp_path)
    log = run(tmp_path, shown=shown).log
    assert log is not None
    assert [(progress.begin, progress.done) for progress in (shown[0], shown[-1])] == [(4, 4), (4, 8)]
    assert shown[-1].loss == tuple(log[-1, :2])
    steps = [point["step"] for progress in shown for point in progress.points]
    assert steps == [6, 8]
