"""Progress, on its way from the workers to people: a board the first worker writes on, and what shows it.

Knows nothing of Ray; ``launch.py`` makes the board an actor. Nothing here decides a byte of the result.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ray_dit.errors import UserError
from ray_dit.formats.loss_curve import BY_T, named
from ray_dit.runtime.progress import progress
from ray_dit.runtime.training.speed import Lap, Speed, Speedometer, Work

if TYPE_CHECKING:  # the board is an actor of its own, which should not take a second to load torch
    from ray_dit.runtime.training.state import TrainingState

REPORT_SECONDS = 0.5
"""Time between two messages: a step may take a millisecond, a message to an actor takes as long."""
POINTS_KEPT = 100
"""Points of the loss curve that a board keeps for who reads it: more than come between two readings."""
FIRST_RECORD_SECONDS, RECORD_SECONDS = 60.0, 300.0
"""When the speed is written into the run's record first, and how often then."""


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    begin: int = 0
    """Step this start went on from."""
    done: int = 0
    """Steps done, those before ``begin`` too."""
    loss: tuple[float, ...] | None = None
    """Of the newest point of the loss curve: step, mean loss."""
    notes: tuple[str, ...] = ()
    """What the workers had to say so far, in sentences."""
    waited: float = 0.0
    """Seconds this start has waited for samples."""
    stalled: float = 0.0
    """Seconds it has waited for checkpoints."""
    seconds: float = 0.0
    """Seconds since it began."""
    points: tuple[Mapping[str, Any], ...] = ()
    """New points of the loss curve, by name; rising steps."""
    work: Work | None = None
    """What a step takes."""

    @property
    def lap(self) -> Lap:
        """What the speed follows from."""
        return Lap(self.done, self.seconds, self.waited, self.stalled)


class Board:
    """Where the workers write; lives outside them, as they may be killed and started again."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._notes: list[str] = []
        self._points: deque[Mapping[str, Any]] = deque(maxlen=POINTS_KEPT)
        self._error: str | None = None
        self._trace: str | None = None

    def show(self, progress: Progress) -> None:
        """The first worker is so far."""
        self._progress = progress
        self._points.extend(progress.points)

    def tell(self, note: str) -> None:
        """Something the user should know."""
        self._notes.append(note)

    def fail(self, error: str) -> None:
        """The user must change something; ``error`` says what, and the first one stays."""
        self._error = self._error or error

    def crash(self, trace: str) -> None:
        """A worker met an error that another try would meet again; the first one stays."""
        self._trace = self._trace or trace

    def progress(self) -> Progress:
        """What was shown last, with all notes and the newest points."""
        return replace(self._progress, notes=tuple(self._notes), points=tuple(self._points))

    def error(self) -> str | None:
        return self._error

    def trace(self) -> str | None:
        return self._trace

    def is_over(self) -> bool:
        """Whether no further try would help."""
        return self._error is not None or self._trace is not None


@dataclass
class Reporter:
    """Tells ``show`` how far the first worker is, seldom enough not to slow it down."""

    show: Callable[[Progress], None]
    begin: int
    lost: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)
    """Seconds waited for samples and for checkpoints so far."""
    seconds: float = REPORT_SECONDS
    t_ranges: tuple[str, ...] = ()
    """See ``Task.t_ranges``."""
    work: Work | None = None
    told: int = 0
    """Points of the loss curve that were there at the beginning, or have been told since."""
    _begun: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, state: "TrainingState", *, now: bool = False) -> None:
        """Shows the state's progress if ``now`` or if the last time is long enough ago."""
        if now or time.monotonic() - self._last > self.seconds:
            self._last = time.monotonic()
            waited, stalled = self.lost()
            points = tuple(named(point, self.t_ranges) for point in state.log[self.told :])
            self.told = len(state.log)
            self.show(
                Progress(
                    begin=self.begin,
                    done=state.step,
                    loss=state.log[-1][:2] if state.log else None,
                    waited=waited,
                    stalled=stalled,
                    seconds=self._last - self._begun,
                    points=points,
                    work=self.work,
                )
            )


@contextlib.contextmanager
def show_progress(
    read: Callable[[], Progress],
    what: str,
    steps: int,
    tensorboard: str | None,
    tell: Callable[[str], None] = lambda note: None,
    record: Callable[[Speed], None] = lambda speed: None,
) -> Iterator[None]:
    """Shows what ``read`` says on a bar and, where a folder is given, in TensorBoard's event files.

    Each note is handed to ``tell``, once; the speed to ``record``, every few minutes.

    A thread does it, as the body waits for Ray Train. UserError if TensorBoard is asked for and not
    installed.
    """
    curve = open_tensorboard(tensorboard)
    end = threading.Event()
    thread = threading.Thread(target=draw, args=(read, what, steps, curve, end, tell, record), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(timeout=10)  # a cluster that went away must not keep the error from the user


def draw(
    read: Callable[[], Progress],
    what: str,
    steps: int,
    curve: Any,
    end: threading.Event,
    tell: Callable[[str], None] = lambda note: None,
    record: Callable[[Speed], None] = lambda speed: None,
) -> None:
    """Shows what ``read`` says until ``end``, and then once more; ``curve``: see ``open_tensorboard``."""
    bar, told, speeds, scalars = None, 0, _Speeds(Speedometer(steps), record), _Scalars(curve)
    with contextlib.ExitStack() as stack:
        if curve is not None:
            stack.callback(curve.close)
        while True:
            ended = end.wait(REPORT_SECONDS)  # asked before reading, so that the last thing written is read
            now = read()
            for note in now.notes[told:]:
                tell(note)
            told = len(now.notes)  # fewer than before where the board begins anew
            # The bar begins with the first step: until then it isn't known where this start goes on from.
            if bar is None and (now.done or ended):
                bar = stack.enter_context(progress(what, steps, "steps", done=now.begin))
            speed = speeds.of(now)
            if bar is not None:
                loss = f"loss {now.loss[1]:.4f}" if now.loss else ""
                bar(now.done, ", ".join(filter(None, [loss, str(speed or "")])))
            scalars.add(now.points, speed)
            if ended:
                speeds.end(now)
                return


@dataclass
class _Scalars:
    """Writes each point of the loss curve to TensorBoard once, and the speed beside it."""

    curve: Any
    _newest: int = -1

    def add(self, points: tuple[Mapping[str, Any], ...], speed: Speed | None) -> None:
        # a start that goes on from before what was drawn makes those points anew, the same
        new = [point for point in points if point["step"] > self._newest]
        if self.curve is None or not new:
            return
        for point in new:
            for name, value in _flat(point):
                self.curve.add_scalar(name, value, point["step"])
        self._newest = new[-1]["step"]
        for name in ("images_per_second", "tflops_per_second", "mfu") if speed is not None else ():
            if (value := getattr(speed, name)) is not None:
                self.curve.add_scalar(name, value, self._newest)


def _flat(point: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a point holds beside its step, ranges of t as names of their own."""
    for name, value in point.items():
        if name == BY_T:
            yield from ((f"{BY_T}/{t}", loss) for t, loss in value.items() if loss is not None)
        elif name != "step":
            yield name, value


@dataclass
class _Speeds:
    """The speed of the last half minute; every few minutes, and as a mean at the end, the record gets it."""

    meter: Speedometer
    record: Callable[[Speed], None]
    _due: float = FIRST_RECORD_SECONDS

    def of(self, now: Progress) -> Speed | None:
        if now.work is None or now.done <= now.begin:
            return None
        speed = self.meter.read(now.work, now.lap)
        if speed is not None and now.seconds >= self._due:
            self._due = now.seconds + RECORD_SECONDS
            self.record(speed)
        return speed

    def end(self, now: Progress) -> None:
        """Records the mean speed of this start."""
        speed = self.meter.overall(now.work) if now.work is not None else None
        if speed is not None:
            self.record(speed)


def open_tensorboard(folder: str | None) -> Any:
    """A writer of TensorBoard's event files in ``folder``, None without one.

    UserError if it is not installed.
    """
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install 'ray-dit[tensorboard]'"
        ) from error
    return SummaryWriter(folder)
