"""Decoders that some images are too much for, here or in a process of their own.

``python -m tests.support.deadly`` is ``ray_dit.folders.decode_child`` with such a decoder. What happens is
what stands in the bytes of an image, after those of a good one.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ray_dit.core.media import DecodedImage, decode_image
from ray_dit.core.to_rgb import Decoding, UnreadableImage
from ray_dit.folders.careful import CRASH
from ray_dit.folders.decode_child import serve

SIGN = "RAY_DIT_TEST_HANGS"
"""Environment variable: a file in which a process that hangs writes its number."""
CHILD = (sys.executable, "-m", "tests.support.deadly")
ABORT, EXIT, FILL, KILL, RAISE, HANG, PRINT = (
    f"now {word}".encode() for word in ("abort", "exit", "fill", "kill", "raise", "hang", "print")
)


def deadly(data: bytes, size: int, decoding: Decoding) -> DecodedImage:
    """As ``decode_image``, of what does not say that it ends the process."""
    if data.endswith(ABORT):
        os.abort()
    if data.endswith(EXIT):
        os._exit(0)
    if data.endswith(KILL):
        os.kill(os.getpid(), signal.SIGKILL)
    if data.endswith(HANG):
        if SIGN in os.environ:
            Path(os.environ[SIGN]).write_text(str(os.getpid()))
        time.sleep(1000)
    if data.endswith(RAISE):
        raise LookupError("a mistake of our own")
    if data.endswith(FILL):
        fill()
    if data.endswith(PRINT):
        print("a codec talks", flush=True)
        os.write(1, b"and talks")
    return decode_image(data, size, decoding)


def fill() -> None:
    """As Pillow does where memory is short, once ``decode_image`` has had it."""
    try:
        np.ones(1 << 30)  # 8 GiB
    except MemoryError as error:
        raise UnreadableImage("MemoryError: ") from error


def set_aside_at_once(data: bytes, size: int, decoding: Decoding) -> DecodedImage:
    """As ``deadly``, but nothing dies."""
    if data.endswith((ABORT, EXIT)):
        raise UnreadableImage(CRASH, "crash")
    return decode_image(data, size, decoding)


if __name__ == "__main__":
    serve(deadly)
