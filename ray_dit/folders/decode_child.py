"""A process that decodes images and nothing else, so that one which ends it ends nothing else.

``python -m ray_dit.folders.decode_child``. It reads from standard input a line of JSON and the image's bytes,
and writes to standard output a line of JSON and the pixels, until there are no more. Nothing else is loaded
here than what decoding takes; ``careful.py`` is the other end.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from ray_dit.core.media import DecodedImage, decode_image
from ray_dit.core.to_rgb import Decoding, UnreadableImage

MEMORY = 4 << 30
"""Bytes of address space. The largest images that Pillow thinks safe take a quarter of it; it is the same on
every machine, lest it decide what is set aside."""
PR_SET_PDEATHSIG = 1
"""Of Linux: which signal a process is sent when its parent ends."""
NO_MEMORY = 3
"""Exit status where an image has taken more than ``MEMORY``."""


def serve(decode: Callable[[bytes, int, Decoding], DecodedImage] = decode_image) -> None:
    """Answers until standard input ends."""
    _limit_and_end_with_parent()
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not come between
    _write(sink, {"ready": True}, b"")
    while line := source.readline():
        asked = json.loads(line)
        answer, pixels = _answer(decode, asked, source.read(asked["bytes"]))
        _write(sink, answer, pixels)


def _answer(
    decode: Callable[[bytes, int, Decoding], DecodedImage], asked: dict[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    try:
        image = decode(data, asked["size"], Decoding(**asked["decoding"]))
        return {"conversions": image.conversions}, image.pixels.tobytes()
    except UnreadableImage as error:
        if isinstance(error.__cause__, MemoryError):
            os._exit(NO_MEMORY)
        seen = None if error.seen is None else vars(error.seen)
        return {"unreadable": str(error), "code": error.code, "seen": seen}, b""
    except MemoryError:
        os._exit(NO_MEMORY)


def _write(sink: BinaryIO, answer: dict[str, Any], pixels: bytes) -> None:
    sink.write(json.dumps(answer).encode() + b"\n" + pixels)
    sink.flush()


def _limit_and_end_with_parent() -> None:
    """What Linux does for us: other systems limit no address space, and let a child that hangs live on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    serve()
