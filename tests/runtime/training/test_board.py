"""Progress on its way to people."""

import sys
from pathlib import Path

import pytest
from regression import CPU, Regression

from ray_dit.config import OptimizerConfig
from ray_dit.errors import UserError
from ray_dit.runtime.training.board import Board, Progress, Reporter, shown
from ray_dit.runtime.training.state import TrainingState


def test_the_board_keeps_what_was_written_last() -> None:
    board = Board()
    assert (board.progress(), board.error()) == (Progress(0, 0, None), None)
    board.show(Progress(4, 5))
    board.show(Progress(4, 6, (6.0, 0.5)))
    board.fail("the latents are gone")
    assert (board.progress(), board.error()) == (Progress(4, 6, (6.0, 0.5)), "the latents are gone")


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
    with shown(board.progress, "train", 8, None):
        board.show(Progress(4, 8, (8.0, 0.25)))
    assert "train: 8/8 steps" in (err := capsys.readouterr().err) and "loss 0.2500" in err


def test_tensorboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'ray-dit\[tensorboard\]'"):
        with shown(Board().progress, "train", 8, str(tmp_path)):
            raise AssertionError("nothing begins")
