"""Requests slow down together where a service refuses some as too many; the clock leaps to what is due."""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from botocore.exceptions import ClientError

from ray_dit.errors import StoreFailure
from ray_dit.storage.pace import FORGET, SLOWEST, Pace
from ray_dit.storage.retry import Patience, attempts

PATIENCE = Patience()


class Leap(selectors.SelectSelector):
    """Waits no time: the clock leaps to when the next thing is due."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._leap = Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now


def run(work: Coroutine[Any, Any, Any]) -> Any:
    random.seed(1)
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        return runner.run(work)


class Service:
    """Takes so many requests per second, each in 20 ms, and refuses more."""

    def __init__(self, limit: int, code: str = "SlowDown") -> None:
        self.limit, self.code = limit, code
        self.taken: deque[float] = deque()
        self.served = self.refused = 0

    async def __call__(self) -> None:
        await asyncio.sleep(0.01)
        now = asyncio.get_running_loop().time()
        while self.taken and self.taken[0] <= now - 1:
            self.taken.popleft()
        over = len(self.taken) >= self.limit
        if not over:
            self.taken.append(now)
        await asyncio.sleep(0.01)
        if over:
            self.refused += 1
            status = {"HTTPStatusCode": 503}
            raise ClientError({"Error": {"Code": self.code}, "ResponseMetadata": status}, "GetObject")  # type: ignore[typeddict-item]
        self.served += 1


async def ask(service: Service, requests: int, paces: list[Pace | None], workers: int = 32) -> float:
    """Seconds until each of the workers has asked so often; they take the paces in turn."""

    async def worker(pace: Pace | None) -> None:
        for _ in range(requests):
            await attempts(service, where="s3://b/k", patience=PATIENCE, pace=pace)

    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.gather(*(worker(paces[number % len(paces)]) for number in range(workers)))
    return loop.time() - begun


def measured(limit: int, make: Callable[[], list[Pace | None]], requests: int = 200) -> tuple[Service, float]:
    service = Service(limit)

    async def work() -> float:
        return await ask(service, requests, make())

    return service, run(work())


def paces(count: int) -> list[Pace | None]:
    return [Pace(asyncio.get_running_loop().time) for _ in range(count)]


@pytest.mark.parametrize("limit", [40, 200])
@pytest.mark.parametrize("processes", [1, 4])
def test_few_requests_are_refused_and_little_time_is_lost(limit: int, processes: int) -> None:
    alone, seconds_alone = measured(limit, lambda: [None])
    together, seconds = measured(limit, lambda: paces(processes))
    assert together.served == alone.served == 32 * 200
    assert alone.refused > 0.1 * alone.served
    assert together.refused < alone.refused / 3
    assert seconds < 1.35 * max(seconds_alone, alone.served / limit)


def test_a_service_that_takes_all_is_asked_at_once() -> None:
    service, seconds = measured(10_000, lambda: paces(1))
    assert (service.refused, service.served) == (0, 32 * 200)
    assert seconds == pytest.approx(200 * 0.02)


@pytest.mark.parametrize(("code", "slower"), [("503", True), ("InternalError", False)])
def test_only_what_says_too_many_slows_down(code: str, slower: bool) -> None:
    async def work() -> bool:
        pace = Pace(asyncio.get_running_loop().time)
        await ask(Service(40, code), 20, [pace])
        return pace.rate is not None

    assert run(work()) == slower


def test_now_and_then_a_refusal_is_tolerated() -> None:
    clock = [0.0]
    pace = Pace(lambda: clock[0])
    for number in range(1000):
        clock[0] += 0.01
        (pace.refused if number % 20 == 0 else pace.accepted)()
    assert pace.rate is None


def test_it_falls_once_per_second_never_to_nothing_and_is_forgotten() -> None:
    clock = [100.0]
    pace = Pace(lambda: clock[0])
    for _ in range(100):
        pace.accepted()
    for _ in range(50):
        pace.refused()
    assert pace.rate == pytest.approx(70)
    for _ in range(100):
        clock[0] += 1.01
        for _ in range(5):
            pace.refused()
    assert pace.rate == SLOWEST
    clock[0] += 10
    assert pace.rate == pytest.approx(SLOWEST + 10)
    clock[0] += FORGET
    assert pace.rate is None


def test_waiting_for_a_turn_ends_with_the_calls_deadline() -> None:
    async def work() -> float:
        pace = Pace(asyncio.get_running_loop().time)
        for _ in range(5):
            pace.refused()
        patience, begun = Patience(deadline=2.0), asyncio.get_running_loop().time()
        calls = (attempts(Service(0), where="s3://b/k", patience=patience, pace=pace) for _ in range(100))
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, StoreFailure) for error in ended)
        return asyncio.get_running_loop().time() - begun

    assert run(work()) <= 2.1


def test_what_the_deadline_cuts_short_says_less_than_the_refusal_before() -> None:
    tries = 0

    async def refused_then_silent() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ClientError(
                {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}},  # type: ignore[typeddict-item]
                "GetObject",
            )
        await asyncio.sleep(60)

    patience = Patience(deadline=5.0, attempt=10.0, first_pause=0.1)
    with pytest.raises(StoreFailure, match=r"tried 2 times in 5 s without success \(SlowDown"):
        run(attempts(refused_then_silent, where="s3://b/k", patience=patience))
    with pytest.raises(StoreFailure, match=r"without success \(TimeoutError"):
        run(attempts(lambda: asyncio.sleep(60), where="s3://b/k", patience=patience))
