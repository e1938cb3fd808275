"""When requests arrive, and that the clients send them then."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from benchmarks.serving.load import MEAN_ROW_STEPS, MOST_IMAGES, STEPS, Arrival, open_loop, poisson, saturate

ANSWER_SECONDS = 0.3


class Server(ThreadingHTTPServer):
    """Answers any number of requests at once, after a while; those for ``MOST_IMAGES`` with an error."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, object]] = []
        self.came: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is no error."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.came.append(time.perf_counter())
        time.sleep(ANSWER_SECONDS)
        self.send_response(500 if body["n"] == MOST_IMAGES else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_arrivals_have_the_rate_and_the_mix_and_are_those_of_their_seed() -> None:
    arrivals = poisson(50.0, 100.0, seed=1)
    assert arrivals == poisson(50.0, 100.0, seed=1) != poisson(50.0, 100.0, seed=2)
    times = [one.time for one in arrivals]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 100
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # exponential
    assert {one.n for one in arrivals} == set(range(1, MOST_IMAGES + 1))
    assert {one.steps for one in arrivals} == set(STEPS)
    assert np.mean([2 * one.n * one.steps for one in arrivals]) == pytest.approx(MEAN_ROW_STEPS, rel=0.05)


def test_only_one_image_in_the_fewest_steps_is_short() -> None:
    assert [Arrival(0.0, n, steps).short for n, steps in ((1, 10), (1, 20), (2, 10))] == [True, False, False]


def test_requests_come_in_their_time_without_waiting_and_one_that_fails_is_endless(server: Server) -> None:
    arrivals = [Arrival(0.0, 1, 10), Arrival(0.1, MOST_IMAGES, 20), Arrival(0.2, 2, 50)]
    started = time.perf_counter()
    first, failed, last = asyncio.run(open_loop(server.url, arrivals))
    assert time.perf_counter() - started < 3 * ANSWER_SECONDS
    assert server.came[-1] - server.came[0] > 0.1
    assert failed == float("inf")
    assert ANSWER_SECONDS <= min(first, last) <= max(first, last) < 2 * ANSWER_SECONDS
    assert [(body["n"], body["num_inference_steps"]) for body in server.bodies] == [(1, 10), (4, 20), (2, 50)]


def test_saturation_counts_the_rows_after_warming_up_with_so_many_requests_at_once(server: Server) -> None:
    counts = iter([10, 50, 50])  # a third of the time has passed; all of it; the clients have left

    async def rows() -> int:
        return next(counts)

    rate = asyncio.run(saturate(server.url, rows, 0.6, concurrent=5, seed=0))
    assert 30 < rate <= 100
    assert len(server.bodies) in range(5, 11)
    assert list(counts) == []
