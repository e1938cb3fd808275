"""A model behind a handle of Ray Serve, as a backend of the API.

Since an image is a function of its spec, a spec whose replica died is given to another one, and the client
sees nothing of it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ray_dit.serving.backend import Accepted, Complete, ImageSpec, Message, ModelInfo, Partial, Refused

logger = logging.getLogger(__name__)

INFO_AGE = 10.0
"""Seconds for which the API knows a model without asking again."""
ATTEMPTS = 3
"""Replicas a spec is given to before it fails."""


class ReplicaBackend:
    """One model, whichever of its replicas answers."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._info: tuple[float, ModelInfo] | None = None

    async def info(self) -> ModelInfo:
        """See Backend. Asked again after a while: an update may have put another model in its place."""
        if self._info is None or time.monotonic() - self._info[0] > INFO_AGE:
            try:
                self._info = time.monotonic(), await self._handle.info.remote()
            except (RayError, RayServeException) as error:
                if self._info is None:
                    raise TimeoutError("no replica answered") from error
        return self._info[1]

    async def ready(self) -> bool:
        """See Backend."""
        return await self._handle.ready.remote()

    async def generate(self, spec: ImageSpec) -> AsyncIterator[Message]:
        """See Backend. A spec whose replica died goes to another, and goes on where it was."""
        started = time.monotonic()
        seen = _Seen()
        for _ in range(ATTEMPTS):
            left = None if spec.seconds is None else spec.seconds - (time.monotonic() - started)
            if left is not None and left <= 0:
                break
            messages: Any = self._handle.options(stream=True).generate.remote(replace(spec, seconds=left))
            try:
                async for message in messages:
                    if isinstance(message, Refused) and message.reason == "closed":
                        break  # this replica is shutting down, or its engine has stopped
                    if seen.new(message):
                        yield message
                else:
                    return
                await asyncio.sleep(0.1)
            except RayActorError:
                logger.warning("a replica died during a request; giving it to another")
                await asyncio.sleep(0.1)
            except (RayError, RayServeException):
                logger.exception("a request failed on its replica")
                yield Refused("internal", "the model failed on this request; try again")
                return
            finally:
                messages.cancel()
        yield Refused("lost", "the model is not available now; try again")


class _Seen:
    """Which messages of a spec are out, so that a second attempt repeats none."""

    def __init__(self) -> None:
        self._accepted = False
        self._complete: set[int] = set()
        self._steps: dict[int, int] = {}

    def new(self, message: Message) -> bool:
        """Whether it is not out yet; it is from now on."""
        if isinstance(message, Accepted):
            known, self._accepted = self._accepted, True
            return not known
        if isinstance(message, Complete):
            known = message.index in self._complete
            self._complete.add(message.index)
            return not known
        if isinstance(message, Partial):
            if message.index in self._complete or message.step <= self._steps.get(message.index, 0):
                return False
            self._steps[message.index] = message.step
        return True
