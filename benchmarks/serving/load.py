"""The requests of the benchmark: when they arrive, and the clients that send them.

Knows of a server only the address, and where its throughput is measured the rows it has computed.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

STEPS, MOST_IMAGES = (10, 20, 50), 4
LONG = {"n": 10, "num_inference_steps": 250}
MEAN_ROW_STEPS = float(2 * np.mean(STEPS) * np.mean(range(1, MOST_IMAGES + 1)))
"""Rows of the network a request takes over all its steps; guided, so two per image and step."""


@dataclass(frozen=True)
class Arrival:
    """A request of ``n`` images in ``steps`` steps, ``time`` seconds after the start of the load."""

    time: float
    n: int
    steps: int

    @property
    def short(self) -> bool:
        """Whether no request of the load is shorter."""
        return self.n == 1 and self.steps == min(STEPS)


def poisson(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Arrivals of a Poisson process of so many requests per second."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds * 2) + 20))
    return [
        Arrival(float(t), int(rng.integers(1, MOST_IMAGES + 1)), int(rng.choice(STEPS)))
        for t in times[times < seconds]
    ]


async def ask(client: httpx.AsyncClient, url: str, n: int, steps: int) -> tuple[float, int]:
    """Seconds of a request, and its status."""
    body = {"prompt": "0", "n": n, "num_inference_steps": steps, "guidance_scale": 2.0}
    started = time.perf_counter()
    answer = await client.post(url, json=body)
    return time.perf_counter() - started, answer.status_code


async def open_loop(url: str, arrivals: Sequence[Arrival]) -> list[float]:
    """Latencies; a request that is not answered 200 counts as endless."""
    async with _client() as client:
        started = time.perf_counter()

        async def one(arrival: Arrival) -> float:
            await asyncio.sleep(max(0.0, arrival.time - (time.perf_counter() - started)))
            # what this client itself is late is its own affair, so it is not left out
            late = time.perf_counter() - started - arrival.time
            seconds, status = await ask(client, url, arrival.n, arrival.steps)
            return seconds + late if status == 200 else float("inf")

        return list(await asyncio.gather(*(one(arrival) for arrival in arrivals)))


async def saturate(url: str, rows: Any, seconds: float, concurrent: int, seed: int) -> float:
    """Rows per second of the network while so many requests are always there; the first third is warm-up."""
    rng = np.random.default_rng(seed)
    stop = asyncio.Event()
    async with _client() as client:

        async def keep_asking() -> None:
            while not stop.is_set():
                await ask(client, url, int(rng.integers(1, MOST_IMAGES + 1)), int(rng.choice(STEPS)))

        tasks = [asyncio.create_task(keep_asking()) for _ in range(concurrent)]
        await asyncio.sleep(seconds / 3)
        first, began = await rows(), time.perf_counter()
        await asyncio.sleep(seconds * 2 / 3)
        last, ended = await rows(), time.perf_counter()
        rate = (last - first) / (ended - began)
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # a server that goes on for clients who left shall not do so in what follows
    while (still := await rows()) != last:
        last = still
        await asyncio.sleep(3)
    return rate


async def short_meets_long(url: str, times: int) -> tuple[float, float]:
    """Median seconds of a 1-image request alone, and while a 10-image 250-step one runs."""
    async with _client() as client:
        alone = [(await ask(client, url, 1, 20))[0] for _ in range(times)]
        long = asyncio.create_task(ask(client, url, LONG["n"], LONG["num_inference_steps"]))
        await asyncio.sleep(0.5)
        met = []
        while len(met) < times and not long.done():
            met.append((await ask(client, url, 1, 20))[0])
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
    await asyncio.sleep(1)
    return float(np.median(alone)), float(np.median(met))


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))


async def warm(url: str) -> None:
    """Asks once for each number of steps; what is set up once then counts in no measurement."""
    async with _client() as client:
        for steps in STEPS:
            _, status = await ask(client, url, 1, steps)
            assert status == 200, status
