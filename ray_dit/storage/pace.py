"""How fast all requests of a process are sent where the service refuses some as too many.

Each request that was refused waits by itself before it is sent again (``retry.py``), which does not help
while all others go on: so they share a pace. It rises and falls as TCP's does, by addition and by
multiplication, so that processes which know nothing of each other come to share what the service gives. Knows
neither requests nor errors, and no clock but the one it is given.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable

WINDOW = 1.0
"""Seconds of replies that are looked at; the pace falls once in that time at most, since what is refused next
was sent before it fell."""
TOLERATED, NOTED = 0.1, 3
"""Part of the replies that may be refusals, and number of refusals from which on it counts: now and then one
is no reason to slow down all."""
FALL = 0.7
"""What the pace becomes, of the requests per second that were accepted."""
RISE = 0.05
"""By how much it then rises per second, as part of what it fell to; by one request at least."""
SLOWEST = 2.0
"""Requests per second; below, calls would run into their deadlines."""
FORGET = 60.0
"""Seconds without a fall after which there is no pace any more."""


class Pace:
    """The pace of the requests of one event loop; none until ``refused`` has been called often enough."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock`` is that of the event loop."""
        self._clock = clock
        self._accepted: deque[float] = deque()
        self._refused: deque[float] = deque()
        self._rate: float | None = None
        self._rise: float | None = None
        """Per second; None where the pace is doubled, which is until it has fallen twice."""
        self._fell = self._rose = self._next = float("-inf")
        self._turns = asyncio.Lock()

    @property
    def rate(self) -> float | None:
        """Requests per second; None without a limit."""
        now = self._clock()
        if self._rate is None or now - self._fell > FORGET:
            self._rate = None
            return None
        seconds, self._rose = now - self._rose, now
        self._rate = self._rate * 2**seconds if self._rise is None else self._rate + self._rise * seconds
        return self._rate

    async def turn(self, *, until: float) -> bool:
        """Waits until the next request may be sent, in the order of the calls; False if that is too late."""
        if self._rate is None:
            return True
        try:
            async with asyncio.timeout_at(until), self._turns:
                while (rate := self.rate) is not None and (wait := self._next - self._clock()) > 0:
                    await asyncio.sleep(min(wait, 1 / rate))
                if rate is not None:
                    self._next = max(self._next, self._clock()) + random.uniform(0.5, 1.5) / rate
        except TimeoutError:
            return False
        return True

    def accepted(self) -> None:
        """The service has dealt with a request."""
        self._noted(self._accepted)

    def refused(self) -> None:
        """The service has refused a request as one too many."""
        now = self._noted(self._refused)
        accepted, refused = len(self._accepted), len(self._refused)
        if refused < NOTED or refused <= TOLERATED * (accepted + refused) or now - self._fell < WINDOW:
            return
        before = self.rate
        reached = accepted / WINDOW if before is None else min(before, accepted / WINDOW)
        self._rate = max(SLOWEST, FALL * reached)
        self._rise = None if before is None else max(1.0, RISE * self._rate)
        self._fell = self._rose = now
        self._next = now + random.uniform(0.5, 1.5) / self._rate

    def _noted(self, times: deque[float]) -> float:
        now = self._clock()
        times.append(now)
        for known in (self._accepted, self._refused):
            while known and known[0] <= now - WINDOW:
                known.popleft()
        return now
