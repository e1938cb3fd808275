"""Messages that take their time: a deadline over them, the client watched meanwhile, server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import Request

from ray_dit.serving.backend import REFUSALS, Complete, Ended, Message, Partial, Refused
from ray_dit.serving.http.answers import Answer
from ray_dit.serving.http.errors import ApiError, ClientGone, refusal

KEEP_ALIVE_SECONDS = 10.0


async def until_late(messages: AsyncIterator[Message], latest: float | None) -> AsyncGenerator[Message]:
    """The messages, of a backend that stands still Refused in the end: engines keep deadlines, if they run.

    ``latest`` is on the clock of time.perf_counter.
    """
    async with aclosing(messages):  # pyright: ignore[reportArgumentType]
        while True:
            left = None if latest is None else latest - time.perf_counter()
            try:
                yield await asyncio.wait_for(anext(messages), left)
            except StopAsyncIteration:
                return
            except TimeoutError:
                yield Refused("deadline", REFUSALS["deadline"])
                return


async def until_gone(request: Request, work: Any) -> Any:
    """The result of ``work``, which is cancelled when the client goes. Raises ClientGone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        # Awaited, so that whatever the backend holds is given up before the request counts as ended.
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def server_sent_events(answer: Answer, messages: AsyncGenerator[Message]) -> AsyncIterator[bytes]:
    """Previews and images as they come; a comment now and then shows proxies that the connection lives."""
    partials: dict[int, int] = {}
    async with aclosing(messages):
        pending: asyncio.Task[Message] | None = None
        try:
            while True:
                # A task that outlives the wait: cancelling `anext` would end the messages.
                pending = pending or asyncio.ensure_future(anext(messages))
                done, _ = await asyncio.wait([pending], timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    yield b": still here\n\n"
                    continue
                message, pending = pending.result(), None
                if isinstance(message, Ended):
                    yield b"data: [DONE]\n\n"
                    return
                if isinstance(message, Refused):
                    yield _error(refusal(message))
                    return
                if isinstance(message, Partial | Complete):
                    number = partials.get(message.index, 0)
                    partials[message.index] = number + isinstance(message, Partial)
                    event = answer.event(message, number)
                    yield _event(event.type, event.model_dump_json())
        except ApiError as error:  # the answer has begun, so its status can't say it any more
            yield _error(error)
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)


def _error(error: ApiError) -> bytes:
    return _event("error", error.json())


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
