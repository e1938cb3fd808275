"""The HTTP API on 127.0.0.1, and the images in its answers."""

import base64
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import uvicorn
from PIL import Image

from ray_dit.config.serve import ApiConfig
from ray_dit.serving.backend import Backend
from ray_dit.serving.http.app import create_app


@contextlib.contextmanager
def serving(backends: dict[str, Backend], config: ApiConfig | None = None) -> Iterator[str]:
    """The API on a port of its own, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(backends, config or ApiConfig()), log_level="error", timeout_graceful_shutdown=3
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def free_port() -> int:
    """A port nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pixels(b64: str) -> np.ndarray:
    """The uint8 RGB pixels [H, W, 3] of an image in an answer."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB"))
