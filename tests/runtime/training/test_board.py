"""Progress on its way to people."""

import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ray_dit.config import OptimizerConfig
from ray_dit.errors import UserError
from ray_dit.runtime.training.board import Board, Progress, Reporter, draw, show_progress
from ray_dit.runtime.training.state import TrainingState
from tests.runtime.training.regression import CPU, Regression


def test_the_board_keeps_what_was_written_last() -> None:
    board = Board()
    assert (board.progress(), board.error(), board.is_over()) == (Progress(0, 0, None), None, False)
    board.show(Progress(4, 5))
    board.show(Progress(4, 6, (6.0, 0.5)))
    board.tell("a checkpoint was damaged")
    board.fail("the latents are gone")
    board.fail("and then that")
    noted = Progress(4, 6, (6.0, 0.5), ("a checkpoint was damaged",))
    assert (board.progress(), board.error()) == (noted, "the latents are gone")
    assert board.is_over()


def test_the_board_keeps_the_first_error_that_would_come_again() -> None:
    board = Board()
    board.crash("ValueError in step 3")
    board.crash("ValueError in step 4")
    assert (board.trace(), board.error(), board.is_over()) == ("ValueError in step 3", None, True)


def test_it_is_written_on_seldom_or_when_it_matters() -> None:
    said: list[Progress] = []
    state = TrainingState.initial(Regression().setup(CPU, True), OptimizerConfig(), None)
    seldom, often = Reporter(said.append, begin=2, seconds=1000), Reporter(said.append, begin=2, seconds=0)
    seldom(state)
    assert said == []
    state.step, state.log = 3, [(3.0, 0.5)]
    seldom(state, now=True)
    often(state)
    assert said == [Progress(2, 3, (3.0, 0.5))] * 2


def test_people_see_the_last_thing_written(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board()
    with show_progress(board.progress, "train", 8, None):
        board.show(Progress(4, 8, (8.0, 0.25)))
    assert "train: 8/8 steps" in (err := capsys.readouterr().err)
    assert "loss 0.2500" in err


@dataclass
class Curve:
    """Takes what a TensorBoard writer takes."""

    points: list[tuple[str, float, int]] = field(default_factory=lambda: [])
    closed: bool = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert not self.closed
        self.points.append((name, value, step))

    def close(self) -> None:
        self.closed = True


class Third(threading.Event):
    """Set when it is waited for the third time."""

    waited = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waited += 1
        return self.waited == 3


def test_the_curve_gets_every_point_that_is_read_once() -> None:
    read = iter([Progress(0, 3, (2.0, 0.5)), Progress(0, 3, (2.0, 0.5)), Progress(0, 4, (4.0, 0.25))])
    curve = Curve()
    draw(lambda: next(read), "train", 4, curve, Third())
    assert curve.points == [("loss", 0.5, 2), ("loss", 0.25, 4)]
    assert curve.closed


def test_each_note_is_told_once() -> None:
    read = iter([Progress(), Progress(notes=("one",)), Progress(notes=("one", "two"))])
    told: list[str] = []
    draw(lambda: next(read), "train", 4, None, Third(), told.append)
    assert told == ["one", "two"]


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    named = pytest.raises(UserError, match=r"pip install 'ray-dit\[tensorboard\]'")
    with named, show_progress(Board().progress, "train", 8, str(tmp_path)):
        raise AssertionError("nothing begins")
