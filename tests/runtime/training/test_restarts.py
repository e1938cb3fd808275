"""How often a training begins again: as often as its workers fail, if they come to checkpoints between."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_dit.errors import UserError
from ray_dit.folders.checkpoints import Checkpoint, newest_step
from ray_dit.ledger.job import Job
from ray_dit.runtime.training.launch import fit_while_it_advances
from ray_dit.storage.open import open_store


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.open(open_store(str(tmp_path)), "train", {"test": True})


def failing_after(job: Job, reached: list[Checkpoint | None]) -> tuple[Callable[[str], None], list[str]]:
    """A Ray Train that gives up once per entry, with that checkpoint there; and the names of its runs."""
    names: list[str] = []

    def fit(name: str) -> None:
        names.append(name)
        if len(names) > len(reached):
            return
        if (checkpoint := reached[len(names) - 1]) is not None:
            job.store.put(checkpoint.key(), b"a state")
        raise RuntimeError("gave up")

    return fit, names


def never() -> None:
    """No worker met an error that another try would meet again."""


def test_workers_that_come_further_may_fail_for_ever(job: Job) -> None:
    fit, names = failing_after(job, [Checkpoint(step, "12345678") for step in range(10, 70, 10)])
    fit_while_it_advances(fit, "run", never, job)
    assert names == ["run", *(f"run-{turn}" for turn in range(2, 8))]
    assert newest_step(job.store) == 60


def test_a_checkpoint_saved_on_notice_counts(job: Job) -> None:
    fit, names = failing_after(
        job, [Checkpoint(10, "12345678"), Checkpoint(15, "12345678", "0123456789abcdef")]
    )
    fit_while_it_advances(fit, "run", never, job)
    assert len(names) == 3


def test_those_that_do_not_end_it(job: Job) -> None:
    fit, names = failing_after(job, [Checkpoint(10, "12345678"), None])
    with pytest.raises(
        RuntimeError, match="3 restarts of its workers, none of which came to a new checkpoint"
    ):
        fit_while_it_advances(fit, "run", never, job)
    assert len(names) == 2


def test_what_would_come_again_is_raised_at_once(job: Job) -> None:
    fit, names = failing_after(job, [Checkpoint(10, "12345678")])

    def raise_final() -> None:
        raise UserError("mount the disk")

    with pytest.raises(UserError, match="mount the disk"):
        fit_while_it_advances(fit, "run", raise_final, job)
    assert len(names) == 1
