"""An S3 service that fails on purpose: a proxy before a real one whose faults are a function of a seed.

Whether the n-th request of a method for a target meets a fault, and which, is hash(seed, method, target, n):
the same seed gives the same faults to the same sequence of requests. Faults are bounded for each (method,
target), so whoever retries gets through. It copies bytes, keeps ``Host`` (signatures cover it) and knows
nothing of ray-dit. ``tampering.py`` changes the bytes of messages where a fault wants other ones.
"""

import asyncio
import hashlib
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, get_args
from urllib.parse import urlsplit

from tests.support import tampering

Fault = Literal[
    "error_500",  # not forwarded
    "slow_down",  # 503, not forwarded
    "stall",  # not forwarded, never answered
    "stall_after",  # forwarded, never answered
    "reset_before",  # connection reset, not forwarded
    "reset_after",  # forwarded, connection reset instead of the reply
    "short_body",  # forwarded, the reply cut in half
    "error_in_200",  # not forwarded, an error body under status 200
    "duplicate",  # forwarded and answered, and forwarded again later (PUT; other methods: reset_after)
    "latency",  # forwarded, the reply withheld for a while
    "slow_body",  # forwarded, the reply in small pieces with pauses between them
    # The rest are whole replies or requests by HTTP's own measure; only what is in them is wrong.
    "cut_body",  # an object's bytes cut in half, the lengths in the reply adapted (GET of an object)
    "flip",  # one bit flipped, of what is sent (PUT) or of what is read (GET of an object)
    "cut_listing",  # a listing's XML cut in half, the length in the reply adapted
    "short_page",  # a listing of at most two keys, which says that more follow: no fault, but rare
]
ALL: tuple[Fault, ...] = get_args(Fault)
LIES: tuple[Fault, ...] = ("cut_body", "flip", "cut_listing", "short_page")
"""What only a checksum, a parser or a second look can find; each is met where its comment says, and other
requests that draw one get a ``reset_after``."""
FAULTS: tuple[Fault, ...] = tuple(fault for fault in ALL if fault not in LIES)
"""What shows in a reply's status, length or absence."""

PIECES = 8
"""In so many a slow body is sent."""


@dataclass(frozen=True)
class Seen:
    """A request, as the watcher is told of it: ``number`` counts the requests of its method."""

    number: int
    method: str
    target: str
    forwarded: bool
    """False: about to be forwarded; True: the service has done it and the reply is about to be sent."""
    port: int = 0
    """The client's, by which ``killer.process_at`` finds its process."""


def fault_for(
    seed: int, method: str, target: str, attempt: int, rate: float, kinds: tuple[Fault, ...]
) -> Fault | None:
    """The fault of the ``attempt``-th request (from 0), or None."""
    digest = hashlib.sha256(f"{seed} {method} {target} {attempt}".encode()).digest()
    if int.from_bytes(digest[:8], "big") / 2**64 >= rate:
        return None
    return kinds[int.from_bytes(digest[8:12], "big") % len(kinds)]


class FaultProxy:
    """Listens on 127.0.0.1 in a thread of its own; a context manager.

    ``hits`` counts the faults that were met.
    """

    def __init__(  # noqa: PLR0913 - each is a fault of its own, given by name
        self,
        upstream: str,
        *,
        seed: int = 0,
        rate: float = 0.0,
        kinds: tuple[Fault, ...] = FAULTS,
        methods: Collection[str] = ("GET", "HEAD", "PUT", "POST", "DELETE"),
        per_target: int = 4,
        stall_seconds: float = 30.0,
        latency_seconds: float = 0.1,
        duplicate_after: float = 0.3,
        drop_headers: Collection[str] = (),
        watch: Callable[[Seen], None] | None = None,
    ) -> None:
        parts = urlsplit(upstream)
        self._methods = methods
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._seed, self._rate, self._kinds, self._per_target = seed, rate, kinds, per_target
        self._stall_seconds, self._duplicate_after = stall_seconds, duplicate_after
        self._latency_seconds = latency_seconds
        self._drop = {b"connection", b"expect", *(name.lower().encode() for name in drop_headers)}
        self.watch = watch
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._faults: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: Counter[str] = Counter()
        self.hits: Counter[Fault] = Counter()

    def __enter__(self) -> "FaultProxy":
        self._loop = asyncio.new_event_loop()
        ready: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def begin(self, seed: int, rate: float) -> None:
        """Starts anew: from now on faults are those of ``seed``, and every count is zero again."""

        async def reset() -> None:
            self._seed, self._rate = seed, rate
            for counts in (self._attempts, self._faults, self.requests, self.hits):
                counts.clear()

        asyncio.run_coroutine_threadsafe(reset(), self._loop).result(30)

    def quiesce(self) -> None:
        """Waits until every delayed duplicate has been delivered."""
        asyncio.run_coroutine_threadsafe(self._settled(), self._loop).result(30)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _settled(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, headers = _parse(head)
            if headers.get(b"expect") == b"100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(int(headers.get(b"content-length", 0)))
            request = _rewritten(head, self._drop) + body
            await self._answer(writer, method, target, request)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the proxy stops
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, target: str, request: bytes) -> None:
        self.requests[method] += 1
        port = writer.get_extra_info("peername")[1]
        fault = self._next_fault(method, target)
        if await self._fails_unforwarded(writer, method, fault):
            return
        seen = Seen(self.requests[method], method, target, False, port)
        self._tell(seen)
        response = await self._forward(tampering.request(request, fault))
        self._tell(replace(seen, forwarded=True))
        await self._send(writer, tampering.response(response, fault), fault)
        if fault == "duplicate":
            self._later(request)
        await writer.drain()

    async def _send(self, writer: asyncio.StreamWriter, response: bytes, fault: Fault | None) -> None:
        match fault:
            case "stall_after":
                await asyncio.sleep(self._stall_seconds)
            case "reset_after":
                _reset(writer)
            case "short_body":
                writer.write(response[: len(response) // 2])
            case "latency":
                await asyncio.sleep(self._latency_seconds)
                writer.write(response)
            case "slow_body":
                piece = -(-len(response) // PIECES)
                for start in range(0, len(response), piece):
                    writer.write(response[start : start + piece])
                    await writer.drain()
                    await asyncio.sleep(self._latency_seconds / PIECES)
            case _:
                writer.write(response)

    def _next_fault(self, method: str, target: str) -> Fault | None:
        request = (method, _steady(target))
        attempt = self._attempts[request]
        self._attempts[request] += 1
        if method not in self._methods or self._faults[request] >= self._per_target:
            return None
        fault = fault_for(self._seed, *request, attempt, self._rate, self._kinds)
        if fault and not _possible(fault, method, target):
            fault = "reset_after"
        if fault:
            self._faults[request] += 1
            self.hits[fault] += 1
        return fault

    async def _fails_unforwarded(
        self, writer: asyncio.StreamWriter, method: str, fault: Fault | None
    ) -> bool:
        match fault:
            case "error_500":
                writer.write(_error("500 Internal Server Error", "InternalError", method))
            case "slow_down":
                writer.write(_error("503 Service Unavailable", "SlowDown", method))
            case "error_in_200":
                writer.write(_error("200 OK", "InternalError", method))
            case "stall":
                await asyncio.sleep(self._stall_seconds)
            case "reset_before":
                _reset(writer)
            case _:
                return False
        return True

    def _tell(self, seen: Seen) -> None:
        if self.watch:
            self.watch(seen)

    def _later(self, request: bytes) -> None:
        async def again() -> None:
            await asyncio.sleep(self._duplicate_after)
            await self._forward(request)

        task = self._loop.create_task(again())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(request)
            with suppress(ConnectionError):  # answered before it read the whole body, as with 412
                await writer.drain()
            return await reader.read(-1)
        finally:
            writer.close()


def _possible(fault: Fault, method: str, target: str) -> bool:
    """Whether a request of this kind can meet the fault."""
    listing = "list-type=" in target
    match fault:
        case "duplicate":
            return method == "PUT"
        case "cut_body":
            return method == "GET" and "?" not in target
        case "flip":
            return method == "PUT" or method == "GET" and "?" not in target
        case "cut_listing" | "short_page":
            return method == "GET" and listing
        case _:
            return True


def _steady(target: str) -> str:
    """The target without what the service made up, which no seed decides."""
    return re.sub(r"(uploadId|continuation-token)=[^&]*", r"\1", target)


def _parse(head: bytes) -> tuple[str, str, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    return method, target, headers


def _rewritten(head: bytes, drop: Collection[bytes]) -> bytes:
    """The request's head without some headers, and asking the service to close the connection afterwards."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in drop]
    return b"\r\n".join([first, *kept, b"Connection: close"]) + b"\r\n\r\n"


def _error(status: str, code: str, method: str) -> bytes:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
    about = f"Content-Type: application/xml\r\nContent-Length: {len(body)}"
    head = f"HTTP/1.1 {status}\r\n{about}\r\nConnection: close"
    return head.encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
