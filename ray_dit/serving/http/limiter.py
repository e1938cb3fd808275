"""Rate and concurrency of image requests by owner of the key, in this process. Knows no HTTP but its 429."""

import contextlib
import time
from collections.abc import Iterator

from ray_dit.config.serve import LimitsConfig
from ray_dit.serving.http.errors import too_many


class Limiter:
    """A token bucket and a count for each owner."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._burst = max(10.0, limits.requests_per_minute / 10)
        self._tokens: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}

    @contextlib.contextmanager
    def enter(self, owner: str) -> Iterator[None]:
        """Inside, the request counts. Raises ApiError 429."""
        running = self._running.get(owner, 0)
        if running >= self._limits.max_concurrent:
            raise too_many(f"{running} requests of this key are running already", "too_many_concurrent", 1)
        self._take_token(owner)
        self._running[owner] = running + 1
        try:
            yield
        finally:
            self._running[owner] -= 1

    def _take_token(self, owner: str) -> None:
        now, rate = time.monotonic(), self._limits.requests_per_minute / 60
        tokens, before = self._tokens.get(owner, (self._burst, now))
        tokens = min(self._burst, tokens + (now - before) * rate)
        if tokens < 1:
            self._tokens[owner] = (tokens, now)
            message = f"more than {self._limits.requests_per_minute} requests per minute with this key"
            raise too_many(message, "rate_limit_exceeded", (1 - tokens) / rate)
        self._tokens[owner] = (tokens - 1, now)
