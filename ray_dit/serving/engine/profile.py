"""How long a step takes by the number of rows of its call: measured in seconds at the start.

Used to size steps; knows nothing of tickets. Throughput of a GPU rises with the rows of a call until it is
busy; that of a CPU hardly rises, and larger calls only make everyone wait longer.
"""

import time

import torch

from ray_dit.config import SamplerConfig
from ray_dit.core.sampling import TableBank, denoise_step, init_rows
from ray_dit.serving.engine.model import Model
from ray_dit.serving.engine.policy import StepCurve


def profile_steps(model: Model, *, max_rows: int, seconds: float) -> StepCurve:
    """Times calls of 1, 2, 4, ... ``max_rows`` rows, the fastest of several each.

    It ends early when the time is up, or memory is, or twice the rows bring less than 3 % more a second.
    Without time (0 seconds) the curve is flat: rows cost nothing, so calls are as large as they may be.
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
    """Whether neither of the last two doublings brought 3 % more rows per second."""
    if len(rows) < 4:
        return False
    rates = [r / t for r, t in zip(rows, times, strict=True)]
    return max(rates[-2:]) < 1.03 * max(rates[:-2])


def _best_time(model: Model, rows: int) -> float:
    """The fastest of 3 to 20 calls, as many as 50 ms hold: other programs only make calls slower."""
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 0.05):
        times.append(_time_call(model, rows))
    return min(times)


def _time_call(model: Model, rows: int) -> float:
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
