"""The latencies of a server without any overhead, for the same arrivals; calculates and measures nothing."""

import bisect
from collections.abc import Sequence

from benchmarks.serving.load import Arrival
from ray_dit.serving.engine.policy import StepCurve, patience, row_limit


def ideal(arrivals: Sequence[Arrival], curve: StepCurve, max_rows: int) -> list[float]:
    """Latency of each request when steps take what the curve says, and nothing else takes any time."""
    now, coming = 0.0, 0
    active: list[tuple[float, int, list[int]]] = []  # when due, number, steps left of each image
    latency = [0.0] * len(arrivals)
    while active or coming < len(arrivals):
        if not active:
            now = max(now, arrivals[coming].time)
        while coming < len(arrivals) and arrivals[coming].time <= now:
            one = arrivals[coming]
            due = one.time + patience(2 * one.n, one.steps, curve, max_rows)
            bisect.insort(active, (due, coming, [one.steps] * one.n))
            coming += 1
        room = row_limit([2 * len(left) for _, _, left in active], curve, max_rows)
        rows = 0
        for _, _, left in active:
            for image in range(len(left)):
                if rows + 2 <= room:
                    left[image] -= 1
                    rows += 2
        now += curve.seconds(rows)
        for _, number, left in active:
            left[:] = [steps for steps in left if steps]
            if not left:
                latency[number] = now - arrivals[number].time
        active = [request for request in active if request[2]]
    return latency
