"""How long a step takes by the number of rows of its call: measured at the start, followed while serving.

Used to size steps; knows nothing of tickets. Throughput of a GPU rises with the rows of a call until it is
busy; that of a CPU hardly rises, and larger calls only make everyone wait longer. What runs beside the
measurement distorts it, so replicas of one machine measure one after another, and the steps of requests
correct it. It decides when an image is made and beside which others, never its bytes.
"""

import contextlib
import fcntl
import logging
import math
import os
import socket
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from ray_dit.config import SamplerConfig
from ray_dit.core.sampling import TableBank, denoise_step, init_rows
from ray_dit.serving.engine.model import Model
from ray_dit.serving.engine.policy import StepCurve

logger = logging.getLogger(__name__)

SEEN = 9
"""Steps of as many rows whose median counts: up to four outliers among them change nothing."""
WINDOW = 33
"""The newest steps of as many rows that are kept."""
FRESH = 2048
"""A step that lies further back than so many others says nothing any more."""
LOOK_EVERY = 16
"""Steps after which the curve is looked at again."""
NOTABLE = 1.25
"""A curve is replaced where it is wrong by this factor or more."""
WORTH = 1.10
"""... or where larger calls would bring so many times the throughput, or smaller ones as much."""
TRY_EVERY = 16
"""After so many calls that were as large as they may be, one may have another size, to learn its time."""


class Profile:
    """The step curve in use, and the most rows a call should have by it.

    Knows no clock: it is told how long steps took. Numbers of rows of which too few were seen lately are
    taken to be as much slower or faster than in the curve before as their neighbours. Without ``follows`` the
    curve stays as it is.
    """

    def __init__(self, start: StepCurve, *, most: int, follows: bool = True) -> None:
        self.curve = start
        self.most = max(most, 2)
        """Most rows that a call may have at all: what is asked for, or less once memory was short."""
        self.sizes = call_sizes(most)
        self._follows = follows
        self._seen: dict[int, deque[tuple[int, float]]] = {}
        """By the rows of a call, padding included: the number of a step, and the seconds it took."""
        self._steps = self._full = 0

    @property
    def best_rows(self) -> int:
        """Rows of a call that is large enough, by the curve."""
        return min(self.curve.best_rows(self.sizes), self.most)

    def observe(self, rows: int, seconds: float) -> bool:
        """A call of so many rows took so long. True when the curve is another now."""
        if not self._follows:
            return False
        self._steps += 1
        seen = self._seen.setdefault(self._called(rows), deque(maxlen=WINDOW))
        seen.append((self._steps, max(seconds, 1e-9)))
        self._full = self._full + 1 if rows >= self.best_rows - 1 else 0
        return self._steps % LOOK_EVERY == 0 and self._look()

    def trial(self) -> int | None:
        """A size next to the one in use whose time is not known, now that it may be tried; else None.

        The larger one comes first: a start that was distorted may have hidden it.
        """
        if self._full < TRY_EVERY:
            return None
        self._full = 0
        best, known = self.best_rows, self._figures()
        larger = [size for size in self.sizes if best < size <= self.most][:1]
        smaller = [size for size in self.sizes if 2 <= size < best][-1:]
        return next((size for size in (*larger, *smaller) if size not in known), None)

    def _called(self, rows: int) -> int:
        """Rows of the call that so many make."""
        return next(size for size in self.sizes if size >= rows) if self.curve.padded else rows

    def _figures(self) -> dict[int, float]:
        """By rows of a call: the seconds it takes, where enough were seen lately."""
        oldest = self._steps - FRESH
        fresh = {rows: [took for step, took in seen if step > oldest] for rows, seen in self._seen.items()}
        return {rows: statistics.median(times) for rows, times in fresh.items() if len(times) >= SEEN}

    def _look(self) -> bool:
        figures = self._figures()
        if not figures:
            return False
        new = corrected(self.curve, figures, self.sizes)
        if not differ(self.curve, new, self.best_rows, self.sizes):
            return False
        self.curve = new
        logger.info("step times have changed: %s", described(new, self.best_rows))
        return True


def corrected(curve: StepCurve, figures: Mapping[int, float], sizes: Collection[int]) -> StepCurve:
    """``curve`` with these seconds by rows; its other ``sizes`` change as many times as their neighbours."""
    known = sorted(figures)
    changes = np.log([figures[rows] / curve.seconds(rows) for rows in known])
    kept = sorted({*known, *(rows for rows in curve.rows if rows in sizes)})
    times = [
        curve.seconds(rows) * math.exp(float(np.interp(np.log(rows), np.log(known), changes)))
        for rows in kept
    ]
    return StepCurve(kept, times, padded=curve.padded)


def differ(old: StepCurve, new: StepCurve, rows_in_use: int, sizes: Collection[int]) -> bool:
    """Whether ``new`` tells another story: other times, or one of ``sizes`` that is better for calls."""
    factors = [new.seconds(rows) / old.seconds(rows) for rows in new.rows]
    if max(factors) >= NOTABLE or min(factors) <= 1 / NOTABLE:
        return True
    best = new.best_rows(sizes)
    gain = best / new.seconds(best) / (rows_in_use / new.seconds(rows_in_use))
    return best < rows_in_use and gain >= 1 or gain >= WORTH


def described(curve: StepCurve, best_rows: int) -> str:
    """The curve for a log: milliseconds by rows, and the rows of calls by it."""
    times = ", ".join(f"{rows}: {1000 * curve.seconds(rows):.3g} ms" for rows in curve.rows)
    return f"calls have up to {best_rows} rows; by rows {times}"


def warm_up(call: Callable[[int], object], sizes: Sequence[int], what: str) -> int:
    """Calls once with each of ``sizes``, from the least up, so that none is compiled while someone waits.

    Gives the largest that memory holds, the least at any rate. ``what`` is for the log: "calls of %d rows".
    """
    most = sizes[0]
    for size in sizes:
        started = time.perf_counter()
        try:
            call(size)
        except torch.OutOfMemoryError:
            logger.warning(f"{what} ran out of memory: no more than %d are tried", size, most)
            break
        logger.info(f"compiled for {what} in %.0f s", size, time.perf_counter() - started)
        most = size
    return most


def measure(model: Model, *, max_rows: int, seconds: float, padded: bool = False) -> Profile:
    """The profile of a model at its start, measured when no other replica of this machine measures.

    ``padded``: calls are padded to the least of `call_sizes` that fits. Without time (0 ``seconds``) the
    curve is flat and stays so: rows cost nothing, so calls are as large as they may be.
    """
    if seconds == 0:
        flat = StepCurve([1, max(max_rows, 2)], [1e-3, 1e-3], padded=padded)
        return Profile(flat, most=max_rows, follows=False)
    with alone(_device_name(model.device), patience=6 * seconds):
        start = profile_steps(model, max_rows=max_rows, seconds=seconds, padded=padded)
    profile = Profile(start, most=max_rows)
    logger.info("step times at the start: %s", described(start, profile.best_rows))
    return profile


def profile_steps(model: Model, *, max_rows: int, seconds: float, padded: bool = False) -> StepCurve:
    """Times calls of 1, 2, 4, ... ``max_rows`` rows, the fastest of several each.

    It ends early when the time is up, or memory is, or twice the rows bring less than 3 % more a second.
    """
    started = time.perf_counter()
    rows: list[int] = []
    times: list[float] = []
    for size in call_sizes(max_rows):
        left = seconds - (time.perf_counter() - started)
        if rows and (3 * times[-1] * size / rows[-1] > left or _flat(rows, times)):
            break
        try:
            best = _best_time(model, size)
        except torch.OutOfMemoryError:
            break
        rows.append(size)
        times.append(best)
    return StepCurve(rows, times, padded=padded)


def call_sizes(max_rows: int) -> list[int]:
    """The sizes of calls that are measured, and that padded calls have: 1, 2, 4, ... and the most."""
    most = max(max_rows, 2)
    return sorted({2**k for k in range(most.bit_length())} | {most})


@contextlib.contextmanager
def alone(device: str, *, patience: float) -> Iterator[None]:
    """Inside, no other process of this user and machine is inside for the same device.

    After ``patience`` seconds, or where the file of the lock can't be had, it goes on all the same: a
    distorted profile is better than no server.
    """
    name = f"ray-dit-profile-{os.getuid()}-{socket.gethostname()}-{device}.lock"
    try:
        descriptor = os.open(
            os.path.join(tempfile.gettempdir(), name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        logger.warning("step times are measured without a lock (%s)", error.strerror)
        yield
        return
    try:
        if not _locked(descriptor, patience):
            logger.warning("step times are measured while other replicas of this machine measure theirs")
        yield
    finally:
        os.close(descriptor)  # which gives the lock up


def _locked(descriptor: int, patience: float) -> bool:
    """Whether the lock was had in time."""
    latest = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= latest:
                return False
            time.sleep(0.05)


def _device_name(device: torch.device) -> str:
    """Of a device, whatever number it has in this process."""
    if device.type != "cuda":
        return device.type
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"


def _flat(rows: list[int], times: list[float]) -> bool:
    """Whether neither of the last two doublings brought 3 % more rows per second."""
    if len(rows) < 4:
        return False
    rates = [r / t for r, t in zip(rows, times, strict=True)]
    return max(rates[-2:]) < 1.03 * max(rates[:-2])


def _best_time(model: Model, rows: int) -> float:
    """The fastest of 3 to 20 calls, as many as 50 ms hold: other programs only make calls slower."""
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 0.05):
        times.append(time_call(model, rows))
    return min(times)


def time_call(model: Model, rows: int) -> float:
    """Seconds of a whole step, unguided: what the host does for one is part of its constant cost."""
    bank = TableBank([model.table(SamplerConfig(name="ddim", num_inference_steps=2, guidance_scale=1.0))])
    labels = torch.zeros(rows, dtype=torch.int64)
    start = init_rows(
        model.latent_shape,
        labels=labels,
        sample_id=labels,
        seed=0,
        guidance_scale=1.0,
        device=model.device,
    )
    _synchronize(model.device)
    started = time.perf_counter()
    denoise_step(model.guided_model, start, bank)
    _synchronize(model.device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
