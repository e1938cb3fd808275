"""Rate and concurrency of image requests by owner of the key, in this process.

Knows no HTTP but its 429 and headers.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from ray_dit.config.serve import LimitsConfig
from ray_dit.serving.http.errors import ApiError, too_many


class Limiter:
    """A token bucket and a count for each owner."""

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._rate = limits.requests_per_minute / 60
        self._burst = max(10.0, limits.requests_per_minute / 10)
        self._tokens: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}

    @contextlib.contextmanager
    def enter(self, owner: str, request_id: str) -> Iterator[None]:
        """Inside, the request counts. Raises ApiError 429."""
        running = self._running.get(owner, 0)
        if running >= self._limits.max_concurrent:
            message = f"{running} requests of this key are running already"
            raise self._refusal(owner, message, "too_many_concurrent", 1.0, request_id)
        self._take_token(owner, request_id)
        self._running[owner] = running + 1
        try:
            yield
        finally:
            self._running[owner] -= 1

    def headers(self, owner: str) -> dict[str, str]:
        """What an owner may still ask for, under OpenAI's names: of a bucket of requests that fills steadily.

        ``reset`` is when it will be full again.
        """
        tokens = self._tokens_now(owner)
        return {
            "x-ratelimit-limit-requests": str(int(self._burst)),
            "x-ratelimit-remaining-requests": str(int(tokens)),
            "x-ratelimit-reset-requests": f"{(self._burst - tokens) / self._rate:.3f}s",
        }

    def _tokens_now(self, owner: str) -> float:
        now = self._clock()
        tokens, before = self._tokens.get(owner, (self._burst, now))
        return min(self._burst, tokens + (now - before) * self._rate)

    def _take_token(self, owner: str, request_id: str) -> None:
        tokens = self._tokens_now(owner)
        if tokens < 1:
            message = f"more than {self._limits.requests_per_minute} requests per minute with this key"
            wait = (1 - tokens) / self._rate
            raise self._refusal(owner, message, "rate_limit_exceeded", wait, request_id)
        self._tokens[owner] = (tokens - 1, self._clock())

    def _refusal(self, owner: str, message: str, code: str, wait: float, request_id: str) -> ApiError:
        error = too_many(message, code, wait, request_id)
        error.headers |= self.headers(owner)
        return error
