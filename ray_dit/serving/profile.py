"""How long a step takes by the number of rows of its call: measured in seconds at the start, used to size steps.

Knows nothing of requests. Throughput of a GPU rises with the rows of a call until it is busy; that of a CPU hardly rises,
and larger calls only make everyone wait longer.
"""

import bisect
import time
from typing import Protocol

import torch

from ray_dit.config import SamplerConfig
from ray_dit.core.guidance import GuidedModel
from ray_dit.core.samplers import SamplerTable
from ray_dit.core.sampling import TableBank, denoise_step, init_rows

ENOUGH = 0.97
"""A call is large enough when it reaches this part of the best throughput measured."""


class Steppable(Protocol):
    """What a step needs of a model."""

    @property
    def guided_model(self) -> GuidedModel: ...
    @property
    def latent_shape(self) -> tuple[int, int, int]: ...
    @property
    def device(self) -> torch.device: ...
    def table(self, sampler: SamplerConfig) -> SamplerTable: ...


class StepCurve:
    """Seconds of a call by rows: measured points, rising, straight lines between them."""

    def __init__(self, rows: list[int], seconds: list[float]) -> None:
        if not rows or len(rows) != len(seconds) or sorted(set(rows)) != rows:
            raise ValueError("a curve needs rising numbers of rows, and a time for each")
        self.rows = rows
        # A larger call measured faster is noise of the clock.
        self._seconds = [max(seconds[: i + 1]) for i in range(len(seconds))]

    def seconds(self, rows: float) -> float:
        """Time of a call of so many rows; past the last point in proportion, before the first as there."""
        i = bisect.bisect_left(self.rows, rows)
        if i == 0:
            return self._seconds[0]
        if i == len(self.rows):
            return self._seconds[-1] * rows / self.rows[-1]
        low, high = self.rows[i - 1], self.rows[i]
        share = (rows - low) / (high - low)
        return self._seconds[i - 1] + share * (self._seconds[i] - self._seconds[i - 1])

    def best_rows(self) -> int:
        """The fewest rows, of those measured, that reach nearly the best throughput; at least 2, a guided image."""
        rates = [rows / max(seconds, 1e-9) for rows, seconds in zip(self.rows, self._seconds, strict=True)]
        enough = next(
            rows for rows, rate in zip(self.rows, rates, strict=True) if rate >= ENOUGH * max(rates)
        )
        return max(enough, 2)

    def rows_within(self, seconds: float) -> int:
        """The most rows, up to the last point, whose call takes no longer than this; 1 if none does."""
        low, high = 1, self.rows[-1]
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds(middle) <= seconds else (low, middle - 1)
        return low


def profile_steps(model: Steppable, *, max_rows: int, seconds: float) -> StepCurve:
    """Times calls of 1, 2, 4, ... ``max_rows`` rows, the fastest of several each.

    It ends early when the time is up, or memory is, or twice the rows bring less than 3 % more a second. Without time
    (0 seconds) the curve is flat: rows cost nothing, so calls are as large as they may be.
    """
    if seconds == 0:
        return StepCurve([1, max(max_rows, 2)], [1e-3, 1e-3])
    sizes = sorted({2**k for k in range(max_rows.bit_length()) if 2**k <= max_rows} | {max_rows})
    started = time.perf_counter()
    rows: list[int] = []
    times: list[float] = []
    for size in sizes:
        left = seconds - (time.perf_counter() - started)
        if rows and (3 * times[-1] * size / rows[-1] > left or _flat(rows, times)):
            break
        try:
            best = _best_time(model, size)
        except torch.OutOfMemoryError:
            break
        rows.append(size)
        times.append(best)
    return StepCurve(rows, times)


def _flat(rows: list[int], times: list[float]) -> bool:
    """Whether neither of the last two doublings brought 3 % more rows a second."""
    if len(rows) < 4:
        return False
    rates = [r / t for r, t in zip(rows, times, strict=True)]
    return max(rates[-2:]) < 1.03 * max(rates[:-2])


def _best_time(model: Steppable, rows: int) -> float:
    """The fastest of 3 to 20 calls, as many as 50 ms hold: what else the machine does only makes calls slower."""
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 0.05):
        times.append(_time_call(model, rows))
    return min(times)


def _time_call(model: Steppable, rows: int) -> float:
    """Of the whole step, unguided: what the host does for a step is part of its constant cost."""
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
