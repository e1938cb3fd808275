"""Progress, on its way from the workers to people: a board the first worker writes on, and what shows it.

Knows nothing of Ray; ``launch.py`` makes the board an actor. Nothing here decides a byte of the result.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ray_dit.errors import UserError
from ray_dit.runtime.progress import progress
from ray_dit.runtime.training.state import TrainingState

REPORT_SECONDS = 0.5
"""Time between two messages: a step may take a millisecond, a message to an actor takes as long."""


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    begin: int = 0
    """Step this start went on from."""
    done: int = 0
    """Steps done, those before ``begin`` too."""
    loss: tuple[float, float] | None = None
    """Newest point of the loss curve: (step, mean loss)."""
    notes: tuple[str, ...] = ()
    """What the workers had to say so far, in sentences."""
    waited: float = 0.0
    """Seconds this start has waited for samples."""
    stalled: float = 0.0
    """Seconds it has waited for checkpoints."""


class Board:
    """Where the workers write; lives outside them, as they may be killed and started again."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._notes: list[str] = []
        self._error: str | None = None
        self._trace: str | None = None

    def show(self, progress: Progress) -> None:
        """The first worker is so far."""
        self._progress = progress

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
        return replace(self._progress, notes=tuple(self._notes))

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
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, state: TrainingState, *, now: bool = False) -> None:
        """Shows the state's progress if ``now`` or if the last time is long enough ago."""
        if now or time.monotonic() - self._last > self.seconds:
            self._last = time.monotonic()
            waited, stalled = self.lost()
            loss = state.log[-1] if state.log else None
            self.show(Progress(self.begin, state.step, loss, waited=waited, stalled=stalled))


@contextlib.contextmanager
def show_progress(
    read: Callable[[], Progress],
    what: str,
    steps: int,
    tensorboard: str | None,
    tell: Callable[[str], None] = lambda note: None,
) -> Iterator[None]:
    """Shows what ``read`` says on a bar and, where a folder is given, in TensorBoard's event files.

    Each note is handed to ``tell``, once.

    A thread does it, as the body waits for Ray Train. UserError if TensorBoard is asked for and not
    installed.
    """
    curve = open_tensorboard(tensorboard)
    end = threading.Event()
    thread = threading.Thread(target=draw, args=(read, what, steps, curve, end, tell), daemon=True)
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
) -> None:
    """Shows what ``read`` says until ``end``, and then once more; ``curve``: see ``open_tensorboard``."""
    bar, drawn, told = None, None, 0
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
            if bar is not None:
                bar(now.done, f"loss {now.loss[1]:.4f}" if now.loss else "")
            if curve is not None and now.loss is not None and now.loss != drawn:
                curve.add_scalar("loss", now.loss[1], int(now.loss[0]))
                drawn = now.loss
            if ended:
                return


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
