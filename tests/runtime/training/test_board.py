"""Progress on its way to people."""

import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ray_dit.config import OptimizerConfig
from ray_dit.errors import UserError
from ray_dit.runtime.training.board import POINTS_KEPT, Board, Progress, Reporter, draw, show_progress
from ray_dit.runtime.training.speed import Lap, Speedometer, Work
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
    state = TrainingState.initial(Regression().setup(CPU), OptimizerConfig(), None)
    seldom, often = Reporter(said.append, begin=2, seconds=1000), Reporter(said.append, begin=2, seconds=0)
    seldom(state)
    assert said == []
    state.step, state.log = 3, [(3.0, 0.5, 2.0, 0.1, 0.4)]
    seldom(state, now=True)
    often(state)
    first, again = said
    assert (first.begin, first.done, first.loss) == (2, 3, (3.0, 0.5))
    assert first.points == (
        {"step": 3, "loss": 0.5, "gradient_norm": 2.0, "learning_rate": 0.1, "validation_loss": 0.4},
    )
    assert again.points == first.points
    often(state, now=True)
    assert said[-1].points == (), "each point is told once"


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
    two: dict[str, Any] = {"step": 2, "loss": 0.5, "loss_by_t": {"0-4": 0.75, "5-9": None}}
    four = {"step": 4, "loss": 0.25, "validation_loss": 0.5}
    read = iter(
        [Progress(0, 3, points=(two,)), Progress(0, 3, points=(two,)), Progress(0, 4, points=(two, four))]
    )
    curve = Curve()
    draw(lambda: next(read), "train", 4, curve, Third())
    assert curve.points == [
        ("loss", 0.5, 2), ("loss_by_t/0-4", 0.75, 2), ("loss", 0.25, 4), ("validation_loss", 0.5, 4),
    ]  # fmt: skip
    assert curve.closed


def test_the_speed_is_shown_drawn_and_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(samples=10, flops=2e12, peak=1e15)
    point = {"step": 4, "loss": 0.5}
    read = iter([
        Progress(0, 2, seconds=60.0, work=work),
        Progress(0, 4, (4.0, 0.5), waited=0.1, seconds=61.0, points=(point,), work=work),
        Progress(0, 6, (4.0, 0.5), waited=0.1, stalled=1.0, seconds=64.0, points=(point,), work=work),
    ])  # fmt: skip
    curve, speeds = Curve(), []
    draw(lambda: next(read), "train", 6, curve, Third(), record=speeds.append)
    first, whole = speeds
    assert first.facts() == {
        "step": 4, "images_per_second": 20.0, "tflops_per_second": 40.0, "mfu": 0.04, "data_wait": 0.1,
        "checkpoint_stall": 0.0, "seconds_left": 1.0,
    }  # fmt: skip
    assert (whole.images_per_second, whole.data_wait, whole.checkpoint_stall) == (10.0, 0.025, 0.25)
    assert ("images_per_second", 20.0, 4) in curve.points
    assert ("mfu", 0.04, 4) in curve.points
    said = "loss 0.5000, 10 images/s, 20 TFLOP/s, MFU 2.0%, waits 2.5% for data, 25.0% for checkpoints"
    assert said in capsys.readouterr().err


def test_the_speed_begins_anew_where_the_workers_do() -> None:
    work, meter = Work(samples=1, flops=1.0), Speedometer(100, window=10)
    assert meter.read(work, Lap(50, 100.0, 0.0, 0.0)) is None
    assert str(meter.read(work, Lap(60, 105.0, 0.0, 0.0))) == (
        "2 images/s, 2e-12 TFLOP/s, waits 0.0% for data, 0.0% for checkpoints"
    )
    assert meter.read(work, Lap(41, 3.0, 0.0, 0.0)) is None  # from the checkpoint of step 40
    assert meter.read(work, Lap(45, 7.0, 0.0, 0.0)).images_per_second == 1.0  # type: ignore[union-attr]
    # a lap ten seconds ago or more is where the window begins
    for steps, seconds in ((50, 20.0), (60, 30.0)):
        speed = meter.read(work, Lap(steps, seconds, 0.0, 0.0))
    assert speed is not None
    assert speed.images_per_second == 1.0
    assert speed.seconds_left == 40.0


def test_a_board_keeps_the_newest_points_for_who_reads_it() -> None:
    board = Board()
    for step in range(1, POINTS_KEPT + 3):
        board.show(Progress(0, step, points=({"step": step},)))
    kept = [point["step"] for point in board.progress().points]
    assert kept == list(range(3, POINTS_KEPT + 3))


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
