"""One worker without Ray: a resumed run ends in the bits of one that was never disturbed."""

from pathlib import Path

import torch

from ray_dit.ledger.job import Job
from ray_dit.runtime.training.board import Progress
from ray_dit.runtime.training.checkpointer import JobCheckpointer
from ray_dit.runtime.training.parallel import Alone
from ray_dit.runtime.training.state import TrainingState
from ray_dit.runtime.training.worker import resume
from ray_dit.storage.open import open_store
from tests.runtime.training.regression import CPU, Regression, at_half, key_of, picture_of, run, same, saved


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    at_half(tmp_path / "half")
    resumed = run(tmp_path / "half")
    assert resumed.seen == list(range(4 * 4, 8 * 4))
    assert same(whole, resumed)
    ours, theirs = (open_store(str(tmp_path / name)) for name in ("half", "whole"))
    for key in (key_of(theirs, 4), key_of(theirs, 8), picture_of(theirs, 8)):
        assert ours.get(key) == theirs.get(key)


def test_a_finished_run_only_finishes_again(tmp_path: Path) -> None:
    whole = run(tmp_path)
    again = run(tmp_path)
    assert again.seen == []
    assert same(whole, again)


def test_all_workers_resume_from_the_checkpoint_that_rank_0_names(tmp_path: Path) -> None:
    class Told(Alone):
        def tell(self, word: str, device: torch.device) -> list[str]:
            assert not word  # not what this worker finds
            return [saved(open_store(str(tmp_path)), 4).name, word]

    run(tmp_path)
    checkpointer = JobCheckpointer(Job.open(open_store(str(tmp_path)), "train", {"test": True}), 4, 8)
    task = Regression()
    state = TrainingState.initial(task.setup(CPU), task.optimizer, task.ema_decay)
    resume(state, checkpointer, Told(rank=1, world_size=2))
    assert checkpointer.found()[0].step == 8
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
